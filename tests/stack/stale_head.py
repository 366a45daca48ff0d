"""A weight receiver with the fault that the parity check exists for; imported in vLLM's worker."""

from openrlhf_medical import devices
from openrlhf_medical.rollout.weights import WeightReceiver


class StaleHeadReceiver(WeightReceiver):
    """Takes all weights, but leaves a tied output head as it was."""

    def receive_weights(self, pickled_plan):
        repack, devices.repack_output_head = devices.repack_output_head, lambda model: None
        try:
            return super().receive_weights(pickled_plan)
        finally:
            devices.repack_output_head = repack
