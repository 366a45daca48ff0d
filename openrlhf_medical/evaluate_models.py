"""The models that ``evaluate`` can ask: one on vLLM engines, through the player of games, or one behind an endpoint.

Always the most likely token (temperature 0). On engines that is not yet the same bits twice: vLLM's sums depend on
which requests share a batch, so that where two tokens are about equally likely another run may take the other.
``run.deterministic`` has the engine answer one at a time, without a prefix cache: slow, and repeatable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openrlhf_medical.config import RunConfig
from openrlhf_medical.errors import RunError, UserError
from openrlhf_medical.evaluate import Listener, Model, Question
from openrlhf_medical.evaluation.answer_file import Answer
from openrlhf_medical.game.players import Player, Role, TurnKey
from openrlhf_medical.judge.chat import ChatReply
from openrlhf_medical.judge.hub import fingerprint
from openrlhf_medical.judge.openai_model import Endpoint, OpenAIModel


def engine_model(config: RunConfig, log_file: Path) -> Model:
    """The model that the configuration names, on engines of ours. Library noise goes to ``log_file``."""
    model = config.actor.model_name_or_path
    asked = {
        "how": "vllm",
        "model": Path(model).name,
        "weights": fingerprint(model),
        "temperature": 0,
        "max_new_tokens": config.rollout.max_new_tokens,
        "deterministic": config.run.deterministic,
        "dtype": config.ds.param_dtype,
        "cot": config.game.cot,
    }

    def ask_all(questions: Sequence[Question], listener: Listener) -> None:
        _ask_engines(config, log_file, questions, listener)

    return Model(asked, ask_all, "starting engines (about half a minute)", is_chat=False)


def _ask_engines(config: RunConfig, log_file: Path, questions: Sequence[Question], listener: Listener) -> None:
    from openrlhf_medical import assembly, casting, cluster, layout
    from openrlhf_medical.console import send_noise_to
    from openrlhf_medical.game.cot import STOP
    from openrlhf_medical.rollout.engine_player import EnginePlayer, Sampling

    send_noise_to(log_file)
    tokenizer = assembly.load_tokenizer(config)
    _check_room(config, tokenizer, questions)
    vllm, model = config.vllm, config.actor.model_name_or_path
    with cluster.session(vllm.num_engines * vllm.tensor_parallel_size):
        engines = casting.start_engine_pool(config, model, "the model under evaluation")
        casting.wait_for_engines(config, {"the model's": engines})
        sampling = Sampling(temperature=0.0, max_new_tokens=config.rollout.max_new_tokens, stop=(STOP,))
        player = EnginePlayer(engines, tokenizer, sampling, config.data.max_len, config.run.generate_timeout_s)
        listener.begins()
        at_once = layout.TURNS_OF_ENGINE * vllm.num_engines
        asyncio.run(ask_player(player, questions, listener, at_once))


def _check_room(config: RunConfig, tokenizer: Any, questions: Sequence[Question]) -> None:
    """Raises UserError where a whole reply would not fit behind a prompt, as games do."""
    from openrlhf_medical.rollout.engine_player import prompt_ids

    lengths = {question.note.note_id: len(prompt_ids(tokenizer, question.prompt)) for question in questions}
    longest = max(lengths, key=lengths.__getitem__)
    needed = lengths[longest] + config.rollout.max_new_tokens
    if needed > config.data.max_len:
        raise UserError(
            f"text {longest}: its prompt has {lengths[longest]} tokens, which with rollout.max_new_tokens "
            f"{config.rollout.max_new_tokens} is more than data.max_len {config.data.max_len}: "
            f"give --data.max_len {needed}, if the model can read so much"
        )


async def ask_player(player: Player, questions: Sequence[Question], listener: Listener, at_once: int) -> None:
    """Put all questions, ``at_once`` under way; answers are handed over in the order in which they come.

    Raises:
        RunError: some got no answer; those of the others were handed over.
    """
    room = asyncio.Semaphore(at_once)

    async def ask(number: int, question: Question) -> None:
        async with room:
            reply = await player.reply(question.prompt, TurnKey(0, number, Role.ASSESSOR))
        listener.answered(Answer(question.key, question.note.note_id, reply.text, reply.truncated))

    work = (ask(number, question) for number, question in enumerate(questions))
    ended = await asyncio.gather(*work, return_exceptions=True)
    failures = [error for error in ended if isinstance(error, BaseException)]
    if failures:
        first = str(failures[0]).strip().partition("\n")[0][:300] or type(failures[0]).__name__
        raise RunError(_unanswered(len(failures), len(questions), first))


def endpoint_model(config: RunConfig, endpoint: Endpoint) -> Model:
    """The model of that name behind an OpenAI-compatible endpoint."""
    name, limit = config.actor.model_name_or_path, config.rollout.max_new_tokens
    chat = OpenAIModel(name, endpoint, temperature=0.0, max_new_tokens=limit)

    def ask_all(questions: Sequence[Question], listener: Listener) -> None:
        chat.load()
        listener.begins()
        ask_endpoint(chat, questions, listener, endpoint.concurrency)

    asked = {"how": "openai", "model": name, "api_base": endpoint.base, "temperature": 0, "max_new_tokens": limit,
             "cot": config.game.cot}  # fmt: skip
    return Model(asked, ask_all, f"asking {endpoint.base}", is_chat=True)


def ask_endpoint(chat: Any, questions: Sequence[Question], listener: Listener, at_once: int) -> None:
    """``at_once`` questions at a time to a ``judge.chat.ChatModel``: the assessor's prompt is one user message.

    Raises:
        RunError: some got no answer; those of the others were handed over.
    """
    failures: list[str] = []
    for start in range(0, len(questions), at_once):
        part = questions[start : start + at_once]
        given = chat.answers([question.prompt.messages[0]["content"] for question in part], 1)
        for question, (answer,) in zip(part, given, strict=True):
            text_id = question.note.note_id
            if isinstance(answer, ChatReply):
                truncated = answer.finish == "length"
                listener.answered(Answer(question.key, text_id, answer.text, truncated))
            elif answer.status == "abstain":  # it does not fit into the model's context, and never will
                listener.answered(Answer(question.key, text_id, None))
            else:
                failures.append(answer.reason)
        if len(failures) > at_once:
            break  # nobody is there: do not wait for the deadline of every text
    if failures:
        asked = min(len(questions), start + at_once)
        raise RunError(_unanswered(len(failures), asked, failures[0]))


def _unanswered(failed: int, asked: int, reason: str) -> str:
    return (f"{failed} of {asked} texts got no answer, the first because: {reason}. The others' answers are kept: the "
            "same command asks only for what is missing")  # fmt: skip
