"""Numbers as whole-number codes that share a scale and a minimum in groups, and back.

A group's number x becomes the code round((x - minimum) / scale), and comes back as minimum + code * scale: KIVI's
asymmetric rule (arXiv 2402.02750). Scale and minimum are kept as float16, the minimum rounded down
and the scale up, so that every number of the group falls among the codes; codes are made for the rounded ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float16, Float32, UInt8
from torch import Tensor

from unspoken.errors import UsageError

# Numbers converted at a time: they and what is made of them on the way stay in a core's second-level cache.
CHUNK_VALUES = 1 << 17
LARGEST = 65504.0  # Of float16.


@dataclass(frozen=True, eq=False)
class Groups:
    """Codes of some numbers, and what they share, all to be filled or read.

    Attributes:
        codes: The codes; with 4 bits a byte holds two, a row's first half in the low bits and its second in the high.
        scale: Of each group, 0 where all its numbers are its minimum.
        minimum: Of each group.
        axis: Which axis of a chunk is shared: 1, if `[groups, shared, channels]` holds tokens that share, or 2, if
            `[tokens, groups, shared]` holds channels that do.
        bits: Of one code, 8 or 4.
    """

    codes: UInt8[Tensor, "heads rows shared_rows bytes"]
    scale: Float16[Tensor, "heads rows each"]
    minimum: Float16[Tensor, "heads rows each"]
    axis: int
    bits: int


def encode(numbers: Float[Tensor, "heads rows one two"], into: Groups) -> None:
    """Fill groups with the codes, scales and minima of some numbers.

    Args:
        numbers: Of any float type, cut so that a group shares the axis behind `heads` and `into.axis` others.
        into: Where they go.

    Raises:
        UsageError: If a number is NaN or too large for float16.
    """
    _share(numbers, into)
    by = into.scale.float().reciprocal_().masked_fill_(into.scale == 0, 0).unsqueeze(into.axis + 1)
    minimum = into.minimum.float().unsqueeze(into.axis + 1)
    work = torch.empty(0)
    for head, rows in _chunks(numbers.shape):
        chunk = numbers[head, rows]
        if work.numel() < chunk.numel():
            work = torch.empty(chunk.numel())
        codes = work[: chunk.numel()].view(chunk.shape)
        torch.sub(chunk, minimum[head, rows], out=codes)
        _store(codes.mul_(by[head, rows]).round_(), into.codes[head, rows], into.bits)


def _share(numbers: Tensor, into: Groups) -> None:
    """Fill in scales and minima. A layer at a time: there are few, and each operation costs more than its numbers."""
    low, high = (each(numbers, into.axis + 1).float() for each in (torch.amin, torch.amax))
    if low.numel():
        # NaN comes through minimum, maximum and the comparison.
        magnitude = float(torch.maximum(high.amax(), -low.amin()))
        if not magnitude <= LARGEST:
            raise UsageError(
                f"A number of magnitude {magnitude:g} cannot be quantised: scales and minima are float16, which ends "
                f"at {LARGEST:g}.",
                "A sound cache has no such numbers; otherwise choose bfloat16 or float32.",
            )
    into.minimum.copy_(_rounded_down(low))
    into.scale.copy_(-_rounded_down((into.minimum.float() - high) / (2**into.bits - 1)))


def decode(groups: Groups, out: Float32[Tensor, "heads rows one two"]) -> None:
    """Fill a float32 tensor with the numbers that groups stand for; a damaged file's may be any."""
    scale, minimum = (each.float().unsqueeze(groups.axis + 1) for each in (groups.scale, groups.minimum))
    for head, rows in _chunks(out.shape):
        chunk = out[head, rows]
        _load(groups.codes[head, rows], chunk, groups.bits)
        chunk.mul_(scale[head, rows]).add_(minimum[head, rows])


def _chunks(shape: torch.Size) -> Iterator[tuple[int, slice]]:
    """Yield ranges of rows within a head that hold about `CHUNK_VALUES` numbers, and at least one row."""
    heads, rows, one, two = shape
    step = max(1, CHUNK_VALUES // (one * two))
    for head in range(heads):
        for start in range(0, rows, step):
            yield head, slice(start, start + step)


def _rounded_down(numbers: Float32[Tensor, "heads rows each"]) -> Float16[Tensor, "heads rows each"]:
    """Return the largest float16 that is no larger than each number.

    Rounding to nearest may go up, by one step at most. A step down is one more in the bits of a negative number, whose
    magnitude grows, and one less in those of a positive one.
    """
    nearest = numbers.half()
    too_large = (nearest > numbers).to(torch.int16)
    return nearest.view(torch.int16).sub_(too_large * numbers.sign().to(torch.int16)).view(torch.float16)


def _store(codes: Tensor, into: Tensor, bits: int) -> None:
    """Write whole numbers in float32 as bytes. numpy converts them several times faster than torch does."""
    width = into.shape[-1] * 8 // bits
    rows, target = codes.view(-1, width), into.view(-1, into.shape[-1]).numpy()
    if bits == 4:
        rows = torch.add(rows[:, : width // 2], rows[:, width // 2 :], alpha=16)
    np.copyto(target, rows.numpy(), casting="unsafe")


def _load(codes: Tensor, into: Tensor, bits: int) -> None:
    source = codes.view(-1, codes.shape[-1]).numpy()
    width = source.shape[1] * 8 // bits
    target = into.view(-1, width).numpy()
    if bits == 8:
        np.copyto(target, source)
        return
    np.copyto(target[:, : width // 2], source & np.uint8(15))
    np.copyto(target[:, width // 2 :], source >> np.uint8(4))
