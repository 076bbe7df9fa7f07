"""The command line in this process, and cache files of the fake engine to give it.

Nothing of the package is imported before a fixture runs, so that `--jaxtyping-packages` can hook in first.
"""

from __future__ import annotations

import gc
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .program import Program

pytest.register_assert_rewrite(f"{__package__}.program")  # A failure in there shows its values, as one in a test does.


@pytest.fixture
def unspoken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Program]:
    """Call the program as `unspoken ARGS` does, in this process."""
    from unspoken.cli import main

    from .program import Result

    monkeypatch.setenv("UNSPOKEN_HOME", str(tmp_path_factory.getbasetemp() / "home"))
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")

    def call(*args: object, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "argv", ["unspoken", *map(str, args)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        code: Any = 0
        try:
            main()
        except SystemExit as done:
            code = done.code
        said = capsys.readouterr()
        return Result(code, said.out, said.err)

    yield call
    gc.unfreeze()  # The program freezes what a start leaves behind; this process is not only its own.


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a document and the cache files that the fake engine makes of it."""
    from unspoken.api import open_model
    from unspoken.cachefile import write_cache
    from unspoken.channels.kv import content_columns
    from unspoken.session import Agent

    from .program import DOCUMENT

    folder = tmp_path_factory.mktemp("made")
    (folder / "doc.txt").write_text(DOCUMENT)
    read = Agent("lyra", open_model("smollm2-135m", engine="fake")).read(DOCUMENT).cache
    write_cache(content_columns(read), folder / "good.kv.safetensors")
    write_cache(read, folder / "whole.kv.safetensors")
    return folder
