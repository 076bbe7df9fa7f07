"""Lay several turns out as one packed row: which token stands where, and who may attend to whom.

A batch is not padded. The distinct pasts stand side by side as columns, every turn's tokens follow, and a
mask lets each token see its own past and its own turn only:

              past A   past B  | turn 1   turn 2   turn 3 (on B)
    turn 1    x x x    . . .   | x         .        .
    turn 2    x x x    . . .   | .         x        .
    turn 3    . . .    x x x   | .         .        x

Forks of one cache thus share its columns, instead of each holding a copy: on two cores, a decoding step of six
questions on one past takes about half the time it takes as a padded batch (`docs/log.md`). Columns carry their
positions with them, so where they stand in the row does not matter.

Options are laid out like turns that go on from the end of their turn, so that all options are scored in the
forward pass that reads the prompt. An option's last token is predicted but never read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Row:
    """One turn as numbers.

    Attributes:
        past: The range of columns of its past in the pack.
        token_ids: Its tokens, at least one.
        options: Its options' tokens.
        start: The position of its first token.
        lookahead: How many later tokens each of them sees in layers with gaps, see `unspoken.engines.protocol.Onset`.
    """

    past: range
    token_ids: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]
    start: int
    lookahead: int = 0


@dataclass(frozen=True)
class Layout:
    """A pack ready for a model.

    Attributes:
        token_ids: `[new]`.
        positions: `[new]`.
        allowed: `[new, past + new]`: whether a new token may attend to a column.
        last: For each turn, the index of its prompt's last token.
        option_columns: For each turn and option, the indices of the option's tokens that are read.
        lenient: What is allowed instead in layers with gaps, where a turn looks ahead; None if none does.
    """

    token_ids: Int[Tensor, " new"]
    positions: Int[Tensor, " new"]
    allowed: Bool[Tensor, "new total"]
    last: tuple[int, ...] = ()
    option_columns: tuple[tuple[tuple[int, ...], ...], ...] = ()
    lenient: Bool[Tensor, "new total"] | None = None


def lay_out(rows: Sequence[Row], past_columns: int) -> Layout:
    """Return the pack of some turns over `past_columns` columns of pasts."""
    sizes = [len(row.token_ids) + sum(len(option) - 1 for option in row.options) for row in rows]
    new = sum(sizes)
    token_ids, positions = torch.zeros(new, dtype=torch.int64), torch.zeros(new, dtype=torch.int64)
    allowed = torch.zeros((new, past_columns + new), dtype=torch.bool)
    last: list[int] = []
    option_columns = []

    def place(at: int, ids: Sequence[int], start: int) -> slice:
        run = slice(at, at + len(ids))
        token_ids[run] = torch.tensor(ids, dtype=torch.int64)
        positions[run] = start + torch.arange(len(ids))
        allowed[run, past_columns + at : past_columns + run.stop] = torch.ones(len(ids), len(ids)).tril().bool()
        return run

    at = 0
    for row in rows:
        prompt = place(at, row.token_ids, row.start)
        allowed[prompt, row.past.start : row.past.stop] = True
        at, columns = prompt.stop, []
        for option in row.options:
            run = place(at, option[:-1], row.start + len(row.token_ids))
            allowed[run, row.past.start : row.past.stop] = True
            allowed[run, past_columns + prompt.start : past_columns + prompt.stop] = True
            columns.append(tuple(range(run.start, run.stop)))
            at = run.stop
        last.append(prompt.stop - 1)
        option_columns.append(tuple(columns))
    lenient = _lenient(rows, last, allowed, past_columns) if any(row.lookahead for row in rows) else None
    return Layout(token_ids, positions, allowed, tuple(last), tuple(option_columns), lenient)


def _lenient(
    rows: Sequence[Row], last: Sequence[int], allowed: Bool[Tensor, "new total"], past_columns: int
) -> Bool[Tensor, "new total"]:
    """Return the mask in which prompts see ahead, options still do not."""
    lenient = allowed.clone()
    for row, end in zip(rows, last, strict=True):
        size = len(row.token_ids)
        run = slice(end + 1 - size, end + 1)
        ahead = torch.ones(size, size).tril(row.lookahead).bool()
        lenient[run, past_columns + run.start : past_columns + run.stop] = ahead
    return lenient


def additive(allowed: Bool[Tensor, "new total"], dtype: torch.dtype) -> Float[Tensor, "1 1 new total"]:
    """Return the mask in the form attention adds to its scores: zero where allowed, the lowest number elsewhere."""
    mask = torch.zeros(allowed.shape, dtype=dtype)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min)[None, None]


def option_score(first: Float[Tensor, " vocab"], read: Float[Tensor, "read vocab"], option: Sequence[int]) -> float:
    """Return the log-probability of an option, summed over its tokens.

    Args:
        first: Log-probabilities at the end of the prompt; they predict the option's first token.
        read: Log-probabilities at each of the option's tokens but the last.
        option: The option's tokens.
    """
    rest = sum(float(read[i, token]) for i, token in enumerate(option[1:]))
    return float(first[option[0]]) + rest
