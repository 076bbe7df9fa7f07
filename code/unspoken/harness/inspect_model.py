"""The provider `unspoken` of Inspect; loaded by Inspect, see `unspoken.harness.inspect_ai`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread
from inspect_ai.model import ChatMessage, GenerateConfig, ModelAPI, ModelOutput, ModelUsage
from inspect_ai.tool import ToolChoice, ToolInfo

from unspoken.engines.protocol import Limits
from unspoken.errors import StorageError, UsageError
from unspoken.harness.pair import ANSWER, SPLIT, Ask, Cut, Pair, load_pair
from unspoken.lab.arms import needs_donor
from unspoken.session import Reply

NEW_TOKENS = 64
# Settings that would change an answer, and that no engine here has.
FOREIGN = (
    "best_of", "frequency_penalty", "presence_penalty", "logit_bias", "top_k", "num_choices", "logprobs",
    "top_logprobs", "prompt_logprobs", "reasoning_effort", "reasoning_tokens", "response_schema",
)  # fmt: skip
COUNTS = ("best_of", "num_choices")


class PairAPI(ModelAPI):  # type: ignore[misc]  # Inspect is not read for types.
    """A sender that reads all messages before the last one and a receiver that is asked the last.

    Args:
        model_name: The model, as for `unspoken.api.load_model`.
        base_url: Not used.
        api_key: Not used.
        config: Inspect's settings.
        channel: A channel or a control by its name.
        engine: A registered engine.
        split: Where a message that stands alone is cut, see `unspoken.harness.pair.Cut`.
        answer: Where the answer begins in it.
        stand_in: A file with the text that stands in for another source in `kv-deranged`.
        pair: A pair that is there already, instead of model, channel and engine.
        others: Device, dtype and the like (`unspoken.engines.protocol.Loading`); `sender` and `receiver`, their names.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 - Inspect's own default
        channel: str = "kv",
        engine: str = "transformers",
        split: str = SPLIT,
        answer: str = ANSWER,
        stand_in: str | None = None,
        pair: Pair | None = None,
        **others: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        self._cut = Cut(split, answer)
        if needs_donor(channel) and stand_in is None and pair is None:
            raise UsageError(
                f"Inspect asks one question at a time, and '{channel}' needs another text's columns.",
                "Name a file with a text of about the same length: -M stand_in=other.txt.",
            )
        further = {} if stand_in is None else {"stand_in": _text(stand_in)}
        self._pair = pair or load_pair(model_name, channel, engine, {**others, **further})
        self._turn = anyio.Lock()
        self._drawn: Counter[tuple[Ask, Limits]] = Counter()

    def max_connections(self) -> int:
        """Return 1: there is one model."""
        return 1

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """Let the receiver answer the last message.

        Raises:
            UsageError: If there are tools, or messages or settings that the pair cannot do.
        """
        if tools:
            raise UsageError(
                f"The task gives tools ({', '.join(tool.name for tool in tools)}), and the pair has none.",
                "Use a task without tools.",
            )
        ask, limits = asked(input, self._cut), _limits(config)
        async with self._turn:
            # The same once more is another epoch, which shall be drawn anew.
            drawn = replace(limits, seed=limits.seed + self._drawn[ask, limits]) if limits.temperature else limits
            (reply,) = await to_thread.run_sync(self._pair.replies, [ask], drawn)
            self._drawn[ask, limits] += 1
        return self._output(reply, limits)

    def _output(self, reply: Reply, limits: Limits) -> ModelOutput:
        made, delivery = reply.generation, reply.delivery
        reason = "max_tokens" if len(made.token_ids) == limits.new_tokens else "stop"
        output = ModelOutput.from_content(self.model_name, reply.text, reason)
        output.usage = ModelUsage(
            input_tokens=delivery.tokens_prefilled,
            output_tokens=len(made.token_ids),
            total_tokens=delivery.tokens_prefilled + len(made.token_ids),
        )
        output.metadata = {
            "channel": self._pair.name,
            "need_free": self._cut.need_free,
            "bytes_moved": delivery.bytes_moved,
            "tokens_skipped": delivery.tokens_skipped,
            "seconds": asdict(delivery.seconds),
        }
        return output


def asked(messages: Sequence[ChatMessage], cut: Cut) -> Ask:
    """Return what is read and asked: the messages before the last one, and that.

    One message before it is read as it stands; several are read with their roles before them ("User: ..."). A message
    that stands alone is cut at the mark.

    Raises:
        UsageError: If the last message is not a user's, or one is no text.
    """
    for message in messages:
        if not isinstance(message.content, str) and any(each.type != "text" for each in message.content):
            raise UsageError("A message holds something else than text.", "Use a task of texts alone.")
    if not messages or messages[-1].role != "user":
        role = messages[-1].role if messages else "nobody"
        raise UsageError(
            f"The last message is from '{role}', and the receiver answers a user's.", "End with a question."
        )
    *before, last = messages
    if not before or cut.need_free:
        return cut("\n\n".join(message.text for message in messages))
    if len(before) == 1:
        return Ask(before[0].text.strip(), last.text.strip())
    return Ask("\n\n".join(f"{each.role.capitalize()}: {each.text.strip()}" for each in before), last.text.strip())


def _limits(config: GenerateConfig) -> Limits:
    set_to = {name: getattr(config, name, None) for name in FOREIGN}
    # One choice, or a penalty of zero, is what there is anyway; True equals 1, but asks for something.
    strange = [
        name
        for name, value in set_to.items()
        if value not in (None, 0) and not (name in COUNTS and value == 1 and value is not True)
    ]
    if strange:
        raise UsageError(
            f"The task sets '{strange[0]}', which the pair does not know.",
            "It knows max_tokens, stop_seqs, temperature, top_p and seed.",
        )
    return Limits(
        new_tokens=config.max_tokens or NEW_TOKENS,
        stop=tuple(each for each in config.stop_seqs or () if each),
        temperature=float(config.temperature or 0.0),
        top_p=1.0 if config.top_p is None else float(config.top_p),
        seed=config.seed or 0,
    )


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"The text {path} cannot be read: {error}.", "Give a file of UTF-8 text.") from error
