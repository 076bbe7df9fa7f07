"""Sizes of memory as people write them."""

from __future__ import annotations

import re
from fractions import Fraction

from unspoken.errors import UsageError

UNITS = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
# Somebody who writes `--vram 6` means gigabytes; a plan for six bytes would be a silent mistake.
SMALLEST = 10**6
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([a-z]*)", re.ASCII | re.IGNORECASE)


def parse_size(text: str, option: str) -> int:
    """Return the bytes of a size such as `6GB`, `19.4GB`, `512MiB` or `6000000000`.

    GB is a thousand million bytes, GiB is 2 to the power of 30. `0` is allowed: a machine may have no GPU.

    Args:
        text: The size.
        option: Where it was given, for the error.

    Raises:
        UsageError: If it is no size.
    """
    found = _SIZE.fullmatch(text.strip())
    factor = UNITS.get(found[2].lower()) if found else None
    size = None if found is None or factor is None else Fraction(found[1]) * factor
    if size is None or 0 < size < SMALLEST:
        raise UsageError(
            f"{option} is '{text}', which is no size of a memory.",
            "Give a number with a unit, such as 6GB, 19.4GB or 512MiB, or bytes as a plain number.",
        )
    return int(size)
