"""Every upstream class, signature and option that this project leans on, in one place.

Raising a pin in launch/pins shows here at once what moved. Options and their defaults are held by
``test_config.py``, which reads upstream's parser.
"""

from __future__ import annotations

import importlib.metadata
import inspect

import pytest

from openrlhf_medical import devices

devices.prepare_process()

from openrlhf.models import loss  # noqa: E402
from openrlhf.models import utils as model_utils  # noqa: E402
from openrlhf.trainer.ppo_utils import experience, kl_controller  # noqa: E402
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker  # noqa: E402
from openrlhf.trainer.ray import launcher, ppo_actor, ppo_critic, vllm_engine  # noqa: E402
from openrlhf.utils import distributed_util, loss_utils  # noqa: E402
from openrlhf.utils.deepspeed import DeepspeedStrategy  # noqa: E402


def plain(ray_class):
    """The class under Ray's decorator, which is what we subclass."""
    return ray_class.__ray_metadata__.modified_class


def parameters(function) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in ("self", "_ray_trace_ctx")]


def test_pins():
    assert importlib.metadata.version("openrlhf") == "0.11.2"
    assert importlib.metadata.version("ray") == "2.55.0"
    assert importlib.metadata.version("deepspeed") == "0.19.6"


# (what, its parameters in order)
SIGNATURES = [
    (plain(ppo_actor.PolicyModelActor).init_model_from_pretrained,
     ["strategy", "pretrain", "max_steps", "vllm_engines"]),
    (plain(launcher.ReferenceModelActor).init_model_from_pretrained, ["strategy", "pretrain"]),
    (launcher.BaseDistributedActor.__init__, ["world_size", "rank", "master_addr", "master_port"]),
    (launcher.BaseModelActor.execute_batch, ["method_name", "all_data", "start_idx", "end_idx"]),
    (launcher.RayActorGroup.__init__,
     ["num_nodes", "num_gpus_per_node", "ray_actor_type", "pg", "num_gpus_per_actor", "duplicate_actors", "resources",
      "num_resources_per_node"]),
    (launcher.RayActorGroup.async_run_method_batch, ["method_name", "kwargs"]),
    (ppo_actor.ActorPPOTrainer.training_step, ["experience", "kl_ctl", "step", "loss_batch_info"]),
    (plain(ppo_critic.CriticModelActor).init_model_from_pretrained, ["strategy", "pretrain", "max_steps"]),
    (ppo_critic.CriticPPOTrainer.training_step, ["experience", "step", "loss_batch_info"]),
    (ppo_actor.ActorPPOTrainer.__init__,
     ["strategy", "actor", "ema_model", "actor_optim", "actor_scheduler", "ema_beta", "micro_train_batch_size",
      "buffer_limit", "buffer_cpu_offload", "eps_clip", "tokenizer", "dataloader_pin_memory", "vllm_engines",
      "kwargs"]),
    (DeepspeedStrategy.prepare, ["args"]),
    (DeepspeedStrategy.backward, ["loss", "model", "_optimizer", "kwargs"]),
    (DeepspeedStrategy.optimizer_step, ["_optimizer", "model", "_scheduler", "name", "kwargs"]),
    (DeepspeedStrategy.moving_average, ["model", "model_ema", "beta", "device"]),
    (RemoteExperienceMaker.get_advantages_and_returns, ["values", "rewards", "action_mask", "gamma", "lambd"]),
    (RemoteExperienceMaker._dispatch_forward, ["group", "sync_condition", "kwargs"]),
    (RemoteExperienceMaker._flatten_results, ["refs", "duplicate_factor"]),
    (loss.aggregate_loss,
     ["loss", "loss_mask", "token_level_loss", "dp_size", "batch_num_tokens", "global_batch_size"]),
    (plain(vllm_engine.RolloutRayActor).generate, ["prompt_token_ids", "sampling_params", "multi_modal_data"]),
    (DeepspeedStrategy.__init__,
     ["seed", "full_determinism", "max_norm", "micro_train_batch_size", "train_batch_size", "zero_stage", "args"]),
    (DeepspeedStrategy.get_ds_train_config, ["optim_dict", "max_norm"]),
    (DeepspeedStrategy.get_ds_eval_config, ["offload"]),
    (DeepspeedStrategy.save_model, ["model", "tokenizer", "output_dir", "kwargs"]),
    (RemoteExperienceMaker.__init__,
     ["actor_model_group", "critic_model_group", "reward_model_group", "initial_model_group", "kl_controller",
      "strategy", "tokenizer", "kwargs"]),
    (RemoteExperienceMaker.split_rollout_samples, ["rollout_samples"]),
    (RemoteExperienceMaker.compute_advantages_and_returns, ["experiences"]),
    (RemoteExperienceMaker.make_experience_batch, ["rollout_samples"]),
    (loss_utils.get_loss_batch_info,
     ["strategy", "loss_mask", "replay_buffer", "step", "dynamic_batch", "batch_num_tokens", "global_batch_size"]),
    (model_utils.compute_reward, ["r", "kl_coef", "kl", "action_mask", "reward_clip_range"]),
    (distributed_util.stateless_init_process_group, ["master_address", "master_port", "rank", "world_size", "device"]),
    (kl_controller.FixedKLController.__init__, ["kl_coef"]),
    (kl_controller.AdaptiveKLController.__init__, ["init_kl_coef", "target", "horizon"]),
    (experience.make_experience_batch, ["items", "packing_samples"]),
    (experience.split_experience_batch, ["experience"]),
    (experience.remove_padding_in_sequences, ["items"]),
    (experience.Experience.concat_experiences, ["experiences_list", "pad_token_id"]),
]  # fmt: skip


@pytest.mark.parametrize(("function", "expected"), SIGNATURES, ids=lambda v: getattr(v, "__qualname__", None))
def test_signature(function, expected):
    assert parameters(function) == expected


def test_experience_fields():
    """What we fill, and what upstream fills for us."""
    assert set(experience.Experience.__dataclass_fields__) == {
        "sequences", "attention_mask", "action_mask", "action_log_probs", "base_action_log_probs", "rollout_log_probs",
        "values", "returns", "advantages", "kl", "rewards", "scores", "response_length", "truncated", "total_length",
        "index", "prompts", "labels", "images", "mm_train_inputs", "info",
    }  # fmt: skip


def test_training_step_reports_what_we_read():
    source = inspect.getsource(ppo_actor.ActorPPOTrainer.training_step)
    for name in ("ppo_clip_ratio", "ppo_kl", "is_filter_ratio", "entropy_loss", "num_action_tokens"):
        assert name in source


def test_critic_step_reports_what_we_read():
    source = inspect.getsource(ppo_critic.CriticPPOTrainer.training_step)
    for name in ("critic_loss", "values", "critic_lr", "critic_grad_norm"):
        assert name in source


def test_gae_reads_nothing_of_its_object():
    assert "self." not in inspect.getsource(RemoteExperienceMaker.get_advantages_and_returns)


def test_vllm_takes_adapters_while_it_runs():
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM

    assert parameters(AsyncLLM.add_lora) == ["lora_request"]
    assert parameters(AsyncLLM.remove_lora) == ["lora_id"]
    assert parameters(LoRARequest)[:3] == ["lora_name", "lora_int_id", "lora_path"]


def test_deepspeed_config_carries_what_we_replace():
    """SelfPlayStrategy takes out the fixed batch; the method that it extends must still put one in."""
    source = inspect.getsource(DeepspeedStrategy.get_ds_train_config)
    assert 'ds_config["train_batch_size"]' in source
    assert 'ds_config["train_micro_batch_size_per_gpu"]' in source


def test_deepspeed_lets_us_mark_the_gradient_boundary():
    from deepspeed.runtime.engine import DeepSpeedEngine

    assert parameters(DeepSpeedEngine.set_gradient_accumulation_boundary) == ["is_boundary"]


def test_vllm_reloads_from_an_iterator():
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    assert parameters(GPUModelRunner.reload_weights)[0] == "weights_iterator"


@pytest.mark.skipif(devices.has_gpu(), reason="with a GPU nothing is patched")
class TestPatchesWithoutGpu:
    def test_flash_attn_is_not_left_behind(self):
        import sys

        from openrlhf.models import ring_attn_utils

        assert "flash_attn" not in sys.modules
        with pytest.raises(RuntimeError, match="NVIDIA GPU"):
            ring_attn_utils.unpad_input(None, None)

    def test_current_device_serves_both_of_upstreams_uses(self):
        import torch

        assert torch.zeros(1).to(torch.cuda.current_device()).device.type == "cpu"
        assert str(torch.device(f"cuda:{torch.cuda.current_device()}")) == "cuda:0"

    def test_transformers_does_not_believe_in_flash_attention(self):
        from transformers.utils import is_flash_attn_2_available

        assert not is_flash_attn_2_available()

    def test_vllm_draws_tokens_by_the_function_that_we_give_it(self, monkeypatch):
        """With seeds of their own requests are drawn as before."""
        import torch
        from vllm.v1.sample.ops import topk_topp_sampler as module

        from openrlhf_medical.cpu_sampling import random_sample

        assert module.compiled_random_sample is random_sample
        calls: list[int] = []
        monkeypatch.setattr(
            module, "compiled_random_sample", lambda logits: calls.append(len(logits)) or logits.argmax(-1)
        )
        sampler = module.TopKTopPSampler("processed_logprobs")
        logits = torch.tensor([[0.0, 1.0], [3.0, 0.0]])
        drawn, logprobs = sampler.forward_cpu(logits.clone(), {}, None, None)
        assert calls == [2] and drawn.tolist() == [1, 0]
        assert torch.allclose(logprobs, logits.log_softmax(-1))
        sampler.forward_cpu(logits.clone(), {0: torch.Generator(), 1: torch.Generator()}, None, None)
        assert calls == [2]

    def test_vllm_keeps_a_lone_worker_in_the_engines_process_where_it_is_told_to(self):
        from vllm.platforms.cpu import CpuPlatform

        (name, value), *_ = devices.engine_environment(1).items()
        assert value == "0" and f'os.environ.get("{name}", "1") == "1"' in inspect.getsource(
            CpuPlatform.check_and_update_config
        )
        assert devices.engine_environment(2) == {}
