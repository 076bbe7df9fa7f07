"""Why a request is refused: status, and an error as OpenAI's clients know it."""

from __future__ import annotations

from typing import Any, NamedTuple

from unspoken.errors import (
    BudgetSpent,
    CacheFileError,
    ContextOverflow,
    IncompatibleCache,
    SealRefused,
    SpotCheckFailed,
    StorageError,
    UnspokenError,
    UsageError,
)
from unspoken.serve.vault import NoSuchCache, QuotaSpent
from unspoken.serve.worker import Busy, Expired


class Refusal(Exception):
    """A request that is refused.

    Args:
        status: The status code.
        message: What was found, and what to do.
        code: A word for programs.
        param: The part of the request that is meant.
        retry_seconds: When to try again.
    """

    def __init__(
        self, status: int, message: str, code: str, param: str | None = None, retry_seconds: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = {} if retry_seconds is None else {"Retry-After": str(retry_seconds)}
        if status == 401:
            self.headers["WWW-Authenticate"] = "Bearer"

    def body(self) -> dict[str, Any]:
        """Return the error as a client gets it."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class NoSuchTalk(Exception):
    """There is no session of this name for this agent."""


class TooManyTalks(Exception):
    """There are as many sessions as there may be."""


class _Answer(NamedTuple):
    status: int
    code: str
    message: str | None = None
    retry_seconds: int | None = None


_ANSWERS: dict[type[Exception], _Answer] = {
    Busy: _Answer(429, "busy", "Too many requests wait for the model. Try again in a moment.", 1),
    Expired: _Answer(503, "timeout", "The answer was not there in time. Try again, or ask for less.", 5),
    NoSuchCache: _Answer(404, "no_such_cache", "There is no such cache for you: its time is over, or it is another's."),
    QuotaSpent: _Answer(
        429, "insufficient_quota", "You keep as many caches, or bytes of them, as you may. Delete one."
    ),
    NoSuchTalk: _Answer(404, "no_such_session", "There is no such session for you."),
    TooManyTalks: _Answer(429, "busy", "There are as many sessions as there may be. End one.", 60),
    BudgetSpent: _Answer(409, "budget_spent"),
    ContextOverflow: _Answer(400, "context_length_exceeded"),
    IncompatibleCache: _Answer(409, "incompatible_cache"),
    CacheFileError: _Answer(422, "no_sound_cache"),
    SpotCheckFailed: _Answer(422, "spot_check_failed"),
    SealRefused: _Answer(403, "seal_refused"),
    UsageError: _Answer(400, "invalid_request"),
    StorageError: _Answer(507, "storage"),
}
REFUSED: tuple[type[Exception], ...] = (Refusal, *_ANSWERS)


def refused(error: Exception) -> Refusal | None:
    """Return the refusal an error stands for; None for one that should not have happened."""
    if isinstance(error, Refusal):
        return error
    answer = next((_ANSWERS[kind] for kind in type(error).__mro__ if kind in _ANSWERS), None)
    if answer is None:
        return None
    # A path of this machine is nobody's business; a file's problem is told by the name the client knows.
    message = answer.message or (str(error) if isinstance(error, UnspokenError) else type(error).__name__)
    return Refusal(answer.status, message, answer.code, retry_seconds=answer.retry_seconds)
