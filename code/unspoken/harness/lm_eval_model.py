"""The model `unspoken` of lm-evaluation-harness; loaded by the harness, see `unspoken.harness.lm_eval`."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs
from tqdm import tqdm

from unspoken.engines.protocol import Limits
from unspoken.errors import UsageError
from unspoken.harness.pair import ANSWER, DEFAULT_MODEL, SPLIT, Ask, Cut, Pair, load_pair
from unspoken.session import Reply

SAMPLING = {"until", "max_gen_toks", "do_sample", "temperature", "top_p", "seed"}
# What some tasks set although it changes nothing, and says so by its value.
NEUTRAL: dict[str, Any] = {"num_beams": 1, "n": 1, "repetition_penalty": 1.0}


class PairLM(LM):  # type: ignore[misc]  # Not annotated.
    """A sender that reads a context's first part and a receiver that is asked the rest.

    Args:
        pretrained: The model, as for `unspoken.api.load_model`.
        channel: A channel or a control by its name.
        engine: A registered engine.
        split: Where a context is cut, see `unspoken.harness.pair.Cut`.
        answer: Where the answer begins in it.
        batch_size: Sources handled together; the harness says 1 unless it is told.
        max_batch_size: Not used.
        pair: A pair that is there already, instead of model, channel and engine.
        others: Device, dtype and the like (`unspoken.engines.protocol.Loading`); `sender` and `receiver`, their names.
    """

    def __init__(
        self,
        pretrained: str = DEFAULT_MODEL,
        channel: str = "kv",
        engine: str = "transformers",
        split: str = SPLIT,
        answer: str = ANSWER,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        pair: Pair | None = None,
        **others: Any,
    ) -> None:
        super().__init__()
        self._cut = Cut(split, answer)
        self._told = {"model": pretrained, "engine": engine, "split": self._cut.split, "need_free": self._cut.need_free}
        self._moved: Counter[str] = Counter()
        if self._cut.need_free:
            logging.getLogger(__name__).warning(
                "split=none: the receiver sees all that the sender does; scores say nothing about what a channel moves."
            )
        together = int(batch_size) if str(batch_size).isdecimal() else 8
        self._pair = pair or load_pair(pretrained, str(channel), engine, {"sources": together} | others)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return the log-probability of each continuation as the receiver's answer, and if it would say just this."""
        cut = [_scored(self._cut, *request.args) for request in requests]
        # A question's continuations are scored in the pass that reads it.
        options: dict[Ask, dict[str, None]] = defaultdict(dict)
        for ask, option in cut:
            options[ask][option] = None
        asks = [replace(ask, options=tuple(found)) for ask, found in options.items()]
        encode = self._pair.encode
        longest = max((len(encode(option)) for _, option in cut), default=1)
        replies = dict(zip(options, self._replies(asks, Limits(longest), disable_tqdm), strict=True))
        return [
            (
                replies[ask].generation.option_logprobs[list(options[ask]).index(option)],
                replies[ask].generation.token_ids[: len(encode(option))] == encode(option),
            )
            for ask, option in cut
        ]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> NoReturn:
        """Refuse: a whole text's likelihood has no question that could be asked of a receiver.

        Raises:
            UsageError: Always.
        """
        raise UsageError(
            "The likelihood of a whole text (loglikelihood_rolling) has no sender and no question.",
            "Choose tasks of the kinds multiple_choice, loglikelihood or generate_until.",
        )

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return the receiver's answer to each context.

        Raises:
            UsageError: If a request asks for sampling that is not there.
        """
        together: dict[Limits, list[tuple[int, Ask]]] = defaultdict(list)
        again: Counter[str] = Counter()
        for at, request in enumerate(requests):
            context, wanted = request.args
            limits = _limits(wanted)
            # The same context once more is a repeat, which shall be drawn anew.
            key = f"{context}\0{wanted}"
            drawn = replace(limits, seed=limits.seed + again[key]) if limits.temperature else limits
            again[key] += 1
            together[drawn].append((at, self._cut(context)))
        found: dict[int, str] = {}
        for limits, some in together.items():
            replies = self._replies([ask for _, ask in some], limits, disable_tqdm)
            found.update((at, reply.generation.text) for (at, _), reply in zip(some, replies, strict=True))
        return [found[at] for at in range(len(requests))]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> NoReturn:
        """Refuse: both agents stand in chat templates of their own.

        Raises:
            UsageError: Always.
        """
        raise UsageError(
            "The agents' chat templates are in place already; a context in one of its own could not be cut.",
            "Leave --apply_chat_template out.",
        )

    def get_model_info(self) -> dict[str, Any]:
        """Return what the harness writes into its results: how the pair is set, and what moved so far."""
        return {"unspoken": self._told | {"channel": self._pair.name, **self._moved}}

    def _replies(self, asks: Sequence[Ask], limits: Limits, quiet: bool) -> Sequence[Reply]:
        with tqdm(total=len(asks), desc=f"asking over {self._pair.name}", disable=quiet) as bar:
            replies = self._pair.replies(asks, limits, bar.update)
        for reply in replies:
            self._moved["bytes_moved"] += reply.delivery.bytes_moved
            self._moved["tokens_prefilled"] += reply.delivery.tokens_prefilled
            self._moved["tokens_skipped"] += reply.delivery.tokens_skipped
        return replies


def _scored(cut: Cut, context: str, continuation: str) -> tuple[Ask, str]:
    """Cut a context; space at its end belongs to the continuation, as words begin with theirs."""
    if not continuation.strip():
        raise UsageError(f"A continuation is blank: {continuation!r}.", "Give choices of at least one word.")
    bare = context.rstrip()
    ask = cut(bare)
    return ask, context[len(bare) :] + continuation


def _limits(wanted: Mapping[str, Any]) -> Limits:
    """Return what a request says of its answer's end and sampling.

    Raises:
        UsageError: If it asks for what is not there.
    """
    given = normalize_gen_kwargs({key: value for key, value in wanted.items() if NEUTRAL.get(key) != value})
    strange = sorted(given.keys() - SAMPLING)
    if strange:
        raise UsageError(
            f"The task's generation_kwargs have '{strange[0]}', which the pair does not know.",
            f"It knows {', '.join(sorted(SAMPLING))}.",
        )
    temperature = float(given.get("temperature", 0.0)) if given.get("do_sample") else 0.0
    return Limits(
        new_tokens=given["max_gen_toks"],
        stop=tuple(str(each) for each in given["until"] if each),
        temperature=temperature,
        top_p=float(given.get("top_p", 1.0)) if temperature else 1.0,
        seed=int(given.get("seed", 0)),
    )
