"""Align the tokens of one text in two models, so that a column of one can be mapped to a column of the other.

Both models read the text as their own tokenizers cut it, and tokens are matched by the characters they cover
(`unspoken.engines.capabilities.Located`). A causal model's column holds what is known at the end of its token, so
where there is nothing to match, columns are taken from before and not from after.

C2C (arXiv 2510.03215, section 3.3.2 and its repository's `aligner.py`) does otherwise: it translates the receiver's
tokens one by one, so that the sender reads a text of as many tokens that is no longer the same text. `c2c_tokens`
does that, for fusers that were trained so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unspoken.errors import UsageError

# In the order in which C2C pairs them: where one token has several roles, the last of them counts.
ROLES = ("pad", "eos", "bos", "unk")


@dataclass(frozen=True, eq=False)
class Alignment:
    """For each of the receiver's columns the sender's columns that it is pooled from, and their shares.

    Links are ordered by the receiver's columns, and those of one column by the sender's; they never cross: a later
    column of the receiver takes nothing from before what an earlier one takes.

    Attributes:
        sources: The sender's column of each link.
        targets: The receiver's column of each link.
        weights: Its share; those of one of the receiver's columns sum to 1.
        columns: How many columns the receiver has.
        sent: How many the sender has.
    """

    sources: Int[Tensor, " links"]
    targets: Int[Tensor, " links"]
    weights: Float[Tensor, " links"]
    columns: int
    sent: int

    def pool(self, features: Float[Tensor, "sent width"]) -> Float[Tensor, "columns width"]:
        """Return for each of the receiver's columns the mean of what is linked to it, by the links' shares.

        Summed in float32, in the dtype and on the device of what came in.

        Raises:
            UsageError: If there is not one row for each of the sender's columns.
        """
        if len(features) != self.sent:
            raise UsageError(
                f"{len(features)} rows were given to an alignment of {self.sent} of the sender's columns.",
                "Give one row for each column, in the order of the sender's tokens.",
            )
        sources, targets, weights = (each.to(features.device) for each in (self.sources, self.targets, self.weights))
        parts = features[sources].to(torch.float32) * weights[:, None]
        pooled = torch.zeros((self.columns, features.shape[1]), device=features.device)
        return pooled.index_add(0, targets, parts).to(features.dtype)


def by_spans(sender: Sequence[tuple[int, int]], receiver: Sequence[tuple[int, int]]) -> Alignment:
    """Match tokens by the characters they cover: a mean over all that overlap, each with its share of the characters.

    Characters that several tokens of one model cover, as parts of an emoji do, are shared out evenly among them in
    order; equal tokenisations are therefore matched one to one. Tokens of no characters are matched with those of the
    other model at the same place.

    A receiver's token that nothing overlaps takes the sender's last column that begins before the token ends, which
    usually ends before it starts, or the first. A sender's column that no token took joins, in the same way, the
    receiver's last token that begins before it ends, with one share for each of its characters and at least one.
    So every column of the sender counts.

    Args:
        sender: The characters [start, stop) of each of the sender's tokens, see `Located`.
        receiver: Those of the receiver's tokens, of the same text.

    Raises:
        UsageError: If one of them has no token, ranges are no ranges or go back, or not a character is in both.
    """
    links = _matched(sender, receiver)
    taken = _reach((link.source, link.target) for link in links)
    links += [
        _Link(target, source, max(1, sender[source][1] - sender[source][0]))
        for source, target in _bridged(sender, receiver, taken)
    ]
    return _alignment(links, len(receiver), len(sender))


def last_of_spans(sender: Sequence[tuple[int, int]], receiver: Sequence[tuple[int, int]]) -> Alignment:
    """Match tokens as `by_spans` does, but take the last of the sender's columns that overlap a token, and it alone.

    It is the one that knows most, but may know what comes after the token. Columns of the sender that are the last of
    no token are dropped.

    Args:
        sender: The characters [start, stop) of each of the sender's tokens, see `Located`.
        receiver: Those of the receiver's tokens, of the same text.

    Raises:
        UsageError: As `by_spans` does.
    """
    last = {link.target: link for link in sorted(_matched(sender, receiver))}
    return _alignment(list(last.values()), len(receiver), len(sender))


class _Link(NamedTuple):
    target: int
    source: int
    share: int | Fraction


class _Part(NamedTuple):
    """A token's own characters: those it shares with others are cut. Exact, so that equal cuts of both sides agree."""

    token: int
    start: int | Fraction
    stop: int | Fraction


def _matched(sender: Sequence[tuple[int, int]], receiver: Sequence[tuple[int, int]]) -> list[_Link]:
    """Return links to all of the receiver's tokens: by what they cover, then by what is near."""
    _require_spans(sender, "sender")
    _require_spans(receiver, "receiver")
    solid = _overlaps(_apart(_solid(sender)), _apart(_solid(receiver)))
    if not solid and _solid(sender) and _solid(receiver):
        raise _unalignable(
            f"the sender's tokens cover characters {_range(sender)} and the receiver's {_range(receiver)}, but none "
            "is covered by both",
            "Locate the tokens of one and the same text.",
        )
    links = solid + _overlaps(_apart(_empty(sender)), _apart(_empty(receiver)))
    taken = _reach((link.target, link.source) for link in links)
    return links + [_Link(target, source, 1) for target, source in _bridged(receiver, sender, taken)]


def _solid(spans: Sequence[tuple[int, int]]) -> list[_Part]:
    return [_Part(token, start, stop) for token, (start, stop) in enumerate(spans) if start < stop]


def _empty(spans: Sequence[tuple[int, int]]) -> list[_Part]:
    """Return the tokens of no characters, each as if it covered one that stands where it does."""
    return [_Part(token, start, start + 1) for token, (start, stop) in enumerate(spans) if start == stop]


def _apart(parts: Sequence[_Part]) -> list[_Part]:
    """Share out evenly, in order, what neighbours cover together, so that no two overlap."""
    starts, stops = [part.start for part in parts], [part.stop for part in parts]
    first = 0
    while first < len(parts):
        last = first
        while last + 1 < len(parts) and parts[last + 1].start < parts[first].stop:
            last += 1
        begin, count = parts[last].start, last - first + 1
        width = parts[first].stop - begin
        for at in range(1, count):
            stops[first + at - 1] = starts[first + at] = begin + Fraction(width * at, count)
        first = max(last, first + 1)  # The last one may share its end with those that follow.
    return [_Part(part.token, start, stop) for part, start, stop in zip(parts, starts, stops, strict=True)]


def _overlaps(sent: Sequence[_Part], received: Sequence[_Part]) -> list[_Link]:
    """Return how much of each other the parts of both sides cover; a part is looked at again only where it is cut."""
    links, first = [], 0
    for part in received:
        while first < len(sent) and sent[first].stop <= part.start:
            first += 1
        at = first
        while at < len(sent) and sent[at].start < part.stop:
            share = min(sent[at].stop, part.stop) - max(sent[at].start, part.start)
            links.append(_Link(part.token, sent[at].token, share))
            at += 1
    return links


def _reach(pairs: Iterable[tuple[int, int]]) -> dict[int, tuple[int, int]]:
    """Return for each token of one side the first and the last token of the other that it is linked to."""
    reach: dict[int, tuple[int, int]] = {}
    for own, other in pairs:
        first, last = reach.get(own, (other, other))
        reach[own] = min(first, other), max(last, other)
    return reach


def _bridged(
    own: Sequence[tuple[int, int]], others: Sequence[tuple[int, int]], linked: Mapping[int, tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """Yield for each token without a link the other side's last one that begins before it ends, crossing no link."""
    highest = [len(others) - 1] * len(own)
    for token in range(len(own) - 2, -1, -1):
        highest[token] = linked[token + 1][0] if token + 1 in linked else highest[token + 1]
    near, lowest = 0, 0
    for token, (_, stop) in enumerate(own):
        # One of no characters at the very end is there by then as well.
        while near + 1 < len(others) and (others[near + 1][0] < stop or others[near + 1][1] <= stop):
            near += 1
        if token in linked:
            lowest = linked[token][1]
        else:
            lowest = min(max(near, lowest), highest[token])
            yield token, lowest


def _alignment(links: Sequence[_Link], columns: int, sent: int) -> Alignment:
    ordered = sorted(links)
    shares = torch.tensor([float(link.share) for link in ordered], dtype=torch.float64)
    targets = torch.tensor([link.target for link in ordered])
    total = torch.zeros(columns, dtype=torch.float64).index_add(0, targets, shares)
    sources = torch.tensor([link.source for link in ordered])
    return Alignment(sources, targets, (shares / total[targets]).to(torch.float32), columns, sent)


def _require_spans(spans: Sequence[tuple[int, int]], side: str) -> None:
    """Refuse what no tokenizer could have told.

    Raises:
        UsageError: If there is no token, or a range is none or goes back behind the one before it.
    """
    if not spans:
        raise _unalignable(f"the {side} has no token", "Give a text with at least one word.")
    before = (0, 0)
    for token, (start, stop) in enumerate(spans):
        if stop < start or start < before[0] or stop < before[1]:
            raise _unalignable(
                f"the {side}'s token {token} covers characters {start} to {stop}, after one from {before[0]} to "
                f"{before[1]}",
                "Give ranges [start, stop) from 0 on, in the order of the tokens; neither end may go back.",
            )
        before = start, stop


def _range(spans: Sequence[tuple[int, int]]) -> str:
    solid = _solid(spans)
    return f"{solid[0].start} to {solid[-1].stop}"


def _unalignable(found: str, hint: str) -> UsageError:
    return UsageError(f"The tokens cannot be aligned: {found}.", hint)


@runtime_checkable
class Vocabulary(Protocol):
    """What C2C asks of a tokenizer."""

    @property
    def roles(self) -> Mapping[str, int]:
        """The special tokens that have one of `ROLES`; a tokenizer need not have all of them."""
        ...

    @property
    def specials(self) -> Collection[int]:
        """All special tokens."""
        ...

    def spelt(self, token_id: int) -> str:
        """Return the text of one token alone, be it special or not; half a character is a replacement character."""
        ...

    def encode(self, text: str) -> Sequence[int]:
        """Return the tokens of a text, with no special tokens added."""
        ...

    def find(self, written: str) -> int | None:
        """Return the token that is written so in the vocabulary, or None."""
        ...


Strategy = Callable[[Sequence[int], Vocabulary], int]
"""Chooses one of the sender's tokens that together are one of the receiver's."""


def first_piece(pieces: Sequence[int], sender: Vocabulary) -> int:
    """Return the first of the tokens: C2C's `first`."""
    return pieces[0]


def longest_piece(pieces: Sequence[int], sender: Vocabulary) -> int:
    """Return the token whose text has most characters, the first of equals: C2C's `longest`."""
    return max(pieces, key=lambda piece: len(sender.spelt(piece)))


STRATEGIES: Mapping[str, Strategy] = {"first": first_piece, "longest": longest_piece}
"""C2C's strategies, by the names they have in its configurations."""


def c2c_tokens(receiver_ids: Sequence[int], receiver: Vocabulary, sender: Vocabulary, strategy: str) -> tuple[int, ...]:
    """Return what C2C lets the sender read: one of its tokens for each of the receiver's.

    A special token becomes the one of the same role, or the one written alike. Any other is spelt and tokenised anew;
    of several pieces the strategy keeps one, and the text of the others is lost. What has no counterpart becomes the
    sender's unknown token, or token 0. Source: `TokenAligner.align_tokens` of C2C's repository, `rosetta/model`.

    Args:
        receiver_ids: The text as the receiver reads it.
        receiver: Its vocabulary.
        sender: The vocabulary of the model whose cache is to be mapped.
        strategy: One of `STRATEGIES`.

    Raises:
        UsageError: If there is no such strategy.
    """
    if strategy not in STRATEGIES:
        raise UsageError(f"C2C has no strategy '{strategy}'.", f"Choose one of {', '.join(STRATEGIES)}.")
    choose, unknown, paired = STRATEGIES[strategy], sender.roles.get("unk") or 0, _paired(receiver, sender)

    def translated(token: int) -> int:
        written = receiver.spelt(token)
        if token in receiver.specials:
            counterparts = paired.get(token), sender.find(written)
            return next((each for each in counterparts if each is not None), unknown)
        pieces = sender.encode(written)
        return choose(pieces, sender) if pieces else unknown

    known = {token: translated(token) for token in set(receiver_ids)}
    return tuple(known[token] for token in receiver_ids)


def _paired(receiver: Vocabulary, sender: Vocabulary) -> dict[int, int | None]:
    """Return the sender's special token for each of the receiver's that has a role; a missing pad is the eos."""
    own, other = (dict(each.roles) for each in (receiver, sender))
    for roles in (own, other):
        if "pad" not in roles and "eos" in roles:
            roles["pad"] = roles["eos"]
    return {own[role]: other.get(role) for role in ROLES if role in own}
