"""What learning and measuring needs beyond what recognising does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from unspoken.errors import UsageError


@contextmanager
def learning_libraries() -> Iterator[None]:
    """Import scipy or scikit-learn inside this, so that who lacks them is told what to do.

    Raises:
        UsageError: If they are not installed.
    """
    try:
        yield
    except ImportError as error:
        raise UsageError(
            f"Learning and measuring recognition needs scipy and scikit-learn: {error}.",
            "Install them with `pip install 'unspoken[identity]'`.",
        ) from error
