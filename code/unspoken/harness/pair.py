"""A pair of agents as a harness sees it: what one reads, what the other is asked, and an arm between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from unspoken.api import load_model
from unspoken.channels.protocol import Reading, Request
from unspoken.engines.protocol import Engine, Limits, Loading
from unspoken.errors import UsageError
from unspoken.lab.arms import build_arm, derangement, needs_donor
from unspoken.session import Agent, Reply

SPLIT, ANSWER = "\nQuestion:", "\nAnswer:"
NO_SPLIT = "none"
DEFAULT_MODEL = "smollm2-135m"


@dataclass(frozen=True)
class Ask:
    """One request of a harness.

    Attributes:
        source: What the sender reads.
        question: What the receiver is asked.
        stem: The words its answer begins with.
        options: Continuations whose log-probability is wanted.
    """

    source: str
    question: str
    stem: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cut:
    """Where a harness' one text is cut into source, question and the beginning of the answer.

    Args:
        split: Stands between source and question, the last time it occurs; `none` shows the whole text to both.
        answer: Stands between question and answer. What follows begins the answer; if nothing does, it does itself.

    Raises:
        UsageError: If one is blank.
    """

    split: str = SPLIT
    answer: str = ANSWER

    def __post_init__(self) -> None:
        # A command line has no line breaks in its arguments.
        object.__setattr__(self, "split", self.split.replace("\\n", "\n"))
        object.__setattr__(self, "answer", self.answer.replace("\\n", "\n"))
        for name, mark in (("split", self.split), ("answer", self.answer)):
            if not mark.strip():
                raise UsageError(f"`{name}` is blank.", f"Give the words that mark the place, such as {SPLIT!r}.")

    @property
    def need_free(self) -> bool:
        """Whether the receiver sees all that the sender does, so that nothing has to be handed over."""
        return self.split == NO_SPLIT

    def __call__(self, text: str) -> Ask:
        """Cut a text.

        Raises:
            UsageError: If the mark is missing, or nothing stands on one side of it.
        """
        source, found, rest = (text, "whole", text) if self.need_free else text.rpartition(self.split)
        question, marked, stem = rest.rpartition(self.answer)
        if not marked:
            question, stem = rest, ""
        elif not stem.strip():
            stem = self.answer.strip()
        if not found or not source.strip() or not question.strip():
            problem = "is not in" if not found else "has nothing on one side in"
            raise UsageError(
                f"The mark {self.split!r} {problem} the text that begins {text[:60]!r}: "
                "it says where the sender's part ends and the receiver's question begins.",
                "Name the task's own with `split=...` (\\n for a line break), or let both see the whole: split=none.",
            )
        return Ask(source.strip(), question.strip(), stem.strip())


class Pair:
    """A sender and a receiver on one model, and an arm of the lab between them.

    Args:
        engine: A model that has passed the gate.
        arm: A channel or a control by its name.
        sender: Name of the agent that reads.
        receiver: Name of the agent that answers.
        sources: How many are handled together.
        stand_in: For controls with another source's columns: whose, if not another request's of nearly its length.

    Raises:
        UsageError: If there is no such arm, or nothing can be handled together.
    """

    def __init__(
        self,
        engine: Engine,
        arm: str = "kv",
        *,
        sender: str = "lyra",
        receiver: str = "vera",
        sources: int = 8,
        stand_in: str | None = None,
    ) -> None:
        if sources < 1:
            raise UsageError(f"{sources} sources cannot be handled together.", "Handle 1 or more.")
        self.name, self._arm = arm, build_arm(arm)
        self._engine, self._sources, self._stand_in = engine, sources, stand_in
        self._sender, self._receiver = Agent(sender, engine), Agent(receiver, engine)
        self._readings: dict[str, Reading] = {}
        self.encode = engine.encode

    def replies(
        self, asks: Sequence[Ask], limits: Limits, watch: Callable[[int], None] = lambda _: None
    ) -> tuple[Reply, ...]:
        """Answer all, each source read once and forked.

        Args:
            asks: What is read and asked.
            limits: When an answer ends.
            watch: Told how many more are answered, now and then.

        Raises:
            UsageError: If a control needs another source and there is none.
            ContextOverflow: If a text does not fit the model.
        """
        lengths = {ask.source: len(self._engine.encode(ask.source)) for ask in asks}
        donors = self._donors(lengths)
        # Sources in order of length: a donor, the next in length, is then at hand in the same or the next batch.
        order = sorted(lengths, key=lambda source: (lengths[source], source))
        found: dict[int, Reply] = {}
        for at in range(0, len(order), self._sources):
            some = set(order[at : at + self._sources])
            batch = [(place, ask) for place, ask in enumerate(asks) if ask.source in some]
            replies = self._answer([ask for _, ask in batch], limits, donors)
            found.update(zip((place for place, _ in batch), replies, strict=True))
            watch(len(batch))
        return tuple(found[place] for place in range(len(asks)))

    def _donors(self, lengths: dict[str, int]) -> dict[str, str]:
        if not needs_donor(self.name):
            return {}
        if self._stand_in is not None:
            return dict.fromkeys(lengths, self._stand_in)
        # By number: the end of an id can name a state of mind, and a text may end in anything.
        texts = {f"{at:09}": source for at, source in enumerate(sorted(lengths))}
        found = derangement({name: lengths[source] for name, source in texts.items()})
        return {texts[name]: texts[other] for name, other in found.items()}

    def _answer(self, asks: Sequence[Ask], limits: Limits, donors: dict[str, str]) -> tuple[Reply, ...]:
        readings = {ask.source: (self._read(ask.source),) for ask in asks}
        deliveries = self._arm.deliver(
            [Request(readings[ask.source], ask.question) for ask in asks],
            self._receiver,
            lambda reading: self._read(donors[reading.source]),
        )
        return self._receiver.answer(
            [ask.question for ask in asks],
            deliveries,
            limits,
            [ask.options for ask in asks],
            [ask.stem for ask in asks],
        )

    def _read(self, source: str) -> Reading:
        """Return a reading, made anew if it was used longer ago than what is kept: a batch and a donor."""
        reading = self._readings.pop(source, None)
        if reading is None:
            while len(self._readings) > self._sources:
                del self._readings[next(iter(self._readings))]
            reading = self._sender.read(source)
        self._readings[source] = reading
        return reading


def load_pair(model: str, channel: str, engine: str, options: dict[str, Any]) -> Pair:
    """Return a pair on a model that has passed the gate, from what a harness was given as text.

    Args:
        model: As for `unspoken.api.load_model`.
        channel: A channel or a control by its name.
        engine: A registered engine.
        options: The fields of `Loading`, and further arguments of `Pair`.

    Raises:
        UnspokenError: If the model cannot be loaded, or something given is unknown.
    """
    how = {each.name for each in fields(Loading)}
    known = {*how, "sender", "receiver", "sources", "stand_in"}
    strange = sorted(options.keys() - known)
    if strange:
        raise UsageError(
            f"There is no model argument '{strange[0]}'.",
            f"There are channel, engine, split, answer, {', '.join(sorted(known))}.",
        )
    build_arm(channel)  # A misspelt name shall not wait for the model.
    opened = load_model(model, engine=engine, **{key: value for key, value in options.items() if key in how})
    return Pair(opened, channel, **{key: value for key, value in options.items() if key not in how})
