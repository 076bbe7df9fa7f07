"""Every error a user can meet, each with a hint what to do.

    UnspokenError
    ├── UsageError            an argument or a configuration that cannot work
    ├── ModelNotFound         a model name that leads to no files
    ├── UnsupportedModel      a kind of model whose cache cannot be moved
    ├── EngineUnavailable     an engine whose library is missing or is not the right one
    ├── GateFailed            a model whose cache does not survive the gate
    ├── IncompatibleCache     a cache made by another model
    ├── CacheFileError        a file that is no sound cache
    ├── SealRefused           a file that nobody known vouches for, here and now
    ├── DecryptionFailed      an encrypted file that this secret does not open
    ├── SpotCheckFailed       a cache whose columns are not what its tokens make
    ├── TransportFailed       a store that has lost a cache, or is not there
    ├── WorkersLost           a cluster that is not there, or whose workers die
    ├── ServerRefused         a server that refuses, or is not there
    ├── BudgetSpent           a session that has used what it may
    ├── ContextOverflow       more columns than the model was trained for
    └── StorageError          a folder or file that cannot be read or written

`docs/errors.md` has a section for each class.
"""

from __future__ import annotations


class UnspokenError(Exception):
    """Base of every error this package raises on purpose.

    Args:
        problem: What was found and what was expected, one sentence.
        hint: What the user can do about it, one sentence.
    """

    def __init__(self, problem: str, hint: str) -> None:
        super().__init__(problem, hint)  # Both, so that an error can travel between processes.
        self.problem = problem
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.problem} {self.hint}"


class UsageError(UnspokenError):
    """An argument, an option or a configuration that cannot work."""


class ModelNotFound(UnspokenError):
    """A model name that leads to no files on this machine, the hub or PyPI."""


class UnsupportedModel(UnspokenError):
    """A kind of model whose cache cannot be moved, named with the reason."""


class EngineUnavailable(UnspokenError):
    """An engine whose library is not installed, or is of a version that cannot be used."""


class GateFailed(UnspokenError):
    """A model whose cache, moved or split, does not continue as it should."""


class IncompatibleCache(UnspokenError):
    """A cache that another model made, with the list of differences."""


class CacheFileError(UnspokenError):
    """A file that is not a sound cache file; nothing of it was loaded."""


class SealRefused(UnspokenError):
    """A cache file whose seal is missing, not valid, of a stranger, out of date, or seen before; nothing was loaded."""


class DecryptionFailed(UnspokenError):
    """An encrypted file that is damaged, or that this passphrase or key does not open; nothing was written."""


class SpotCheckFailed(UnspokenError):
    """A cache whose columns, computed again from its token ids, come out otherwise, or that cannot be checked."""


class TransportFailed(UnspokenError):
    """A store that cannot be reached, does not answer, or has nothing under a key; nothing was loaded."""


class WorkersLost(UnspokenError):
    """A cluster that is not there, or whose workers die again and again; what they had finished is kept."""


class ServerRefused(UnspokenError):
    """A server that refuses what is asked of it, or cannot be reached."""


class BudgetSpent(UnspokenError):
    """A session that has used what it may use."""


class ContextOverflow(UnspokenError):
    """A prompt that needs more columns than the model has positions for."""


class StorageError(UnspokenError):
    """A file or folder that cannot be read or written."""
