"""Short neutral passages that every agent can read, for calibration."""

from __future__ import annotations

from functools import cache
from importlib.resources import files


@cache
def passages() -> tuple[str, ...]:
    """Return 32 encyclopaedic passages of 55 to 80 words on very different subjects, in a fixed order.

    They are for choosing layers and thresholds, never for a published test.
    """
    text = files("unspoken.identity").joinpath("passages.txt").read_text(encoding="utf-8")
    return tuple(" ".join(block.split()) for block in text.split("\n\n") if block.strip())
