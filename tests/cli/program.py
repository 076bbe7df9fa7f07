"""What the tests of the command line share: a document to ask about, what a call came to, and how to judge it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCUMENT = "The old mill is run by Anna. Bob left the harbour on Monday."
ASKED = "Who runs the old mill?"
FAKE = ("--engine", "fake")


@dataclass(frozen=True)
class Result:
    """What a call of the program came to."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """Standard output as JSON."""
        return json.loads(self.out)


Program = Callable[..., Result]


def folder_of(result: Path) -> list[str]:
    """Return the paths of everything below a folder, sorted."""
    return sorted(str(path.relative_to(result)) for path in result.rglob("*"))


def clear(told: Result, problem: str) -> None:
    """See one error sentence and a hint, and nothing of the program's insides."""
    assert told.code == 2
    assert told.err.count("Error:") == 1
    assert "Traceback" not in told.err
    error, hint = told.err.strip().splitlines()
    assert error.startswith("Error: ")
    assert problem in error
    assert error.endswith((".", "?")), error
    assert hint.endswith((".", "?", ")")), hint
