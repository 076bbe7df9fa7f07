"""From the messages of a request to what the model reads, and from what it made to what is kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from unspoken.cache import KVCache
from unspoken.channels.kv import require_fitting
from unspoken.engines.protocol import Engine, Frame, Generation, Piece, Prompt, Turn
from unspoken.errors import UsageError
from unspoken.serve.schema import Message
from unspoken.transforms.cast import Cast
from unspoken.transforms.place import place_behind

CARD = "You are a helpful assistant."
APART, LINE = "\n\n", "\n"


Key = tuple[str, tuple[int, ...]]


class Talk(NamedTuple):
    """Messages as a chat template has them.

    Attributes:
        system: The system prompt.
        said: Words of user and assistant in turn, the user's first and last.
    """

    system: str
    said: tuple[str, ...]


def talk(messages: Sequence[Message]) -> Talk:
    """Return messages as user and assistant in turn.

    Those of one role that follow one another become one. An answer before the first question is refused.

    Raises:
        UsageError: If they cannot be brought into that form.
    """
    system = [each.text for each in messages if each.role in ("system", "developer")]
    said: list[tuple[str, str]] = []
    for each in messages:
        if each.role in ("system", "developer"):
            continue
        if said and said[-1][0] == each.role:
            said[-1] = (each.role, f"{said[-1][1]}{APART}{each.text}")
        else:
            said.append((each.role, each.text))
    if not said or said[0][0] != "user" or not said[-1][1].strip():
        raise UsageError(
            "The messages are no conversation: it begins with the user's words and ends with some.",
            "Begin with a message of the role user, or system and then user.",
        )
    return Talk(APART.join(system) or CARD, tuple(text for _, text in said))


class Beginnings:
    """What was read lately, so that the same beginning is not read twice.

    Args:
        most_bytes: Most bytes of columns that are remembered.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most, self._held = most_bytes, 0
        self._known: OrderedDict[Key, KVCache] = OrderedDict()

    def read(self, engine: Engine, whose: str, first: Prompt, others: Sequence[Prompt]) -> tuple[KVCache, int]:
        """Return the cache of prompts one after the other, and how many tokens of it had been read before.

        Args:
            engine: The model.
            whose: Who wants it. What one agent has read makes nothing faster for another, or it could find out what.
            first: The beginning of all its conversations, such as its card.
            others: What follows, cut where conversations may go on otherwise.
        """
        keys = [(whose, _ids((first, *others[:at]))) for at in range(len(others) + 1)]
        known = next((at for at in range(len(others), -1, -1) if keys[at] in self._known), None)
        if known is None:
            cache, before = engine.prefill(first), 0
            self._remember(keys[0], cache)
            known = 0
        else:
            cache = self._known[keys[known]]
            before = cache.columns
            self._known.move_to_end(keys[known])
        rest = sum(others[known:], Prompt(()))
        if rest.token_ids:
            cache = engine.prefill(rest, cache)
            self._remember(keys[-1], cache)
        return cache, before

    def _remember(self, key: Key, cache: KVCache) -> None:
        if cache.bytes_held() > self._most:
            return
        self._known[key] = cache
        self._held += cache.bytes_held()
        while self._held > self._most:
            _, oldest = self._known.popitem(last=False)
            self._held -= oldest.bytes_held()


@dataclass(frozen=True)
class Asked:
    """What the model is asked, and what stands before it.

    Attributes:
        turn: The end of the user's last words, on top of everything before.
        skipped: Columns that had not to be read.
    """

    turn: Turn
    skipped: int


def ask(engine: Engine, told: Talk, given: Sequence[KVCache], beginnings: Beginnings, whose: str) -> Asked:
    """Return what the model is asked by a conversation, with caches handed over before its last words.

    Raises:
        IncompatibleCache: If a cache was made by another model.
        UsageError: If a whole conversation comes with others, or with more than the user's next words.
    """
    frame = engine.frame(told.system)
    for cache in given:
        require_fitting(cache, engine)
    if any(cache.manifest.rope == "applied" for cache in given):
        return _gone_on(engine, frame, told, given)
    exchanges = [
        _content(engine, question) + frame.after + _content(engine, answer) + frame.between
        for question, answer in zip(told.said[:-1:2], told.said[1::2], strict=True)
    ]
    past, skipped = beginnings.read(engine, whose, frame.before, exchanges)
    line = Prompt((Piece("template", engine.encode(LINE)),))
    for at, run in enumerate(run for cache in given for run in _runs(cache)):
        past = place_behind(engine.prefill(line, past) if at else past, run)
        skipped += run.columns
    apart = Prompt((Piece("template", engine.encode(APART)),)) if given else Prompt(())
    return Asked(Turn(apart + _content(engine, told.said[-1]) + frame.after, past), skipped)


def _runs(cache: KVCache) -> list[KVCache]:
    """Return a cache's runs of content one by one, so that what was said by two does not run into one."""
    spans = [span for span in cache.manifest.spans if span.kind == "content"]
    return [cache.slice(span.start, span.stop) for span in spans] if len(spans) > 1 else [cache]


def _gone_on(engine: Engine, frame: Frame, told: Talk, given: Sequence[KVCache]) -> Asked:
    """Go on from a whole conversation; it has its own system prompt."""
    if len(given) != 1 or len(told.said) != 1:
        raise UsageError(
            f"A whole conversation was handed over with {len(given) - 1} other caches and {len(told.said)} messages.",
            "Give its handle alone, and the user's next words alone.",
        )
    past = Cast(engine.dtype)(given[0])
    return Asked(Turn(_content(engine, told.said[0]) + frame.after, past), past.columns)


def whole(engine: Engine, asked: Turn, made: Generation, system: str) -> KVCache:
    """Return the cache of a conversation after its answer, up to where the user's next words go."""
    between = engine.frame(system).between
    answer = Prompt((Piece("content", made.token_ids),))
    return engine.prefill(asked.prompt + answer + between, asked.past)


def _content(engine: Engine, text: str) -> Prompt:
    return Prompt((Piece("content", engine.encode(text)),))


def _ids(parts: Sequence[Prompt]) -> tuple[int, ...]:
    return tuple(token for part in parts for token in part.token_ids)
