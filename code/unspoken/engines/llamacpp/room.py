"""Memory for saved states: fresh, or the same again, because getting it from the system costs as much as filling it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Room = Callable[[int], NDArray[np.uint8]]
"""Returns memory for a number of bytes."""
# Larger states get fresh memory: on a small machine, what is kept is missing elsewhere.
KEPT_BYTES = 64 << 20


def fresh(size: int) -> NDArray[np.uint8]:
    """Return memory of its own."""
    return np.empty(size, np.uint8)


class Kept:
    """Returns the same memory each time it is asked; what was in it is then overwritten."""

    def __init__(self) -> None:
        self._memory = fresh(0)

    def __call__(self, size: int) -> NDArray[np.uint8]:
        """Return memory for so many bytes."""
        if size > KEPT_BYTES:
            return fresh(size)
        if len(self._memory) < size:
            self._memory = fresh(size)
        return self._memory[:size]
