"""Read numbers from bytes that came from elsewhere: nothing is taken before it is known to be there."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from unspoken.errors import CacheFileError, UsageError

AGAIN = "Save the sequence again, and hand its bytes over whole and unchanged."

Data = bytes | bytearray | memoryview | NDArray[np.uint8]


class Reader:
    """Where reading stands in some bytes.

    Attributes:
        data: The bytes.
        at: How many of them were taken.
    """

    def __init__(self, data: NDArray[np.uint8], at: int = 0) -> None:
        self.data = data
        self.at = at

    @staticmethod
    def of(data: Data) -> Reader:
        """Begin to read; the bytes are not copied.

        Raises:
            UsageError: If they do not lie one after the other in memory.
        """
        try:
            return Reader(np.frombuffer(data, np.uint8))
        except (ValueError, BufferError) as error:
            raise UsageError(
                f"The bytes of a llama.cpp state cannot be read: {error}.", "Give a copy of them."
            ) from error

    @property
    def left(self) -> int:
        """Bytes that were not taken yet."""
        return len(self.data) - self.at

    def take(self, count: int, what: str) -> NDArray[np.uint8]:
        """Return the next bytes as a view.

        Raises:
            CacheFileError: If fewer are left. Reading then stands where these would have ended: of two ways to read
                the same bytes, the one that got further is the one to tell about.
        """
        start, left = self.at, self.left
        self.at += count
        if count > left:
            raise refused(f"is cut off: {what} would take {count} bytes from byte {start}, {left} are left")
        return self.data[start : self.at]

    def numbers(self, code: str, what: str) -> tuple[int, ...]:
        """Return the next integers, by a format of `struct`."""
        return struct.unpack(code, self.take(struct.calcsize(code), what).data)

    def magic(self, expected: int, others: Mapping[int, str]) -> None:
        """Take the magic number.

        Args:
            expected: What it has to be.
            others: What bytes are that begin with another one.

        Raises:
            CacheFileError: If it is not the expected one.
        """
        (found,) = self.numbers("<I", "the magic number")
        if found != expected:
            unknown = f"begins with {found:#010x} instead of {expected:#010x}: it is something else, or damaged"
            raise refused(
                others.get(found, unknown),
                "Save one sequence with llama.cpp, and read it as what it is: memory or file.",
            )


def refused(problem: str, hint: str = AGAIN) -> CacheFileError:
    """Return the error for bytes that are no sound state, with what is wrong with them."""
    return CacheFileError(f"The llama.cpp state {problem}.", hint)
