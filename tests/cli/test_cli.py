"""The command line as a user meets it: what it prints, what it writes, and what it says when something is wrong."""

from __future__ import annotations

import gc
import gzip
import hashlib
import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from unspoken.cache import KVCache
from unspoken.cachefile import peek, read_cache, write_cache
from unspoken.cachefile.header import MANIFEST_KEY
from unspoken.cli import COMMANDS, cli, main

DOCUMENT = "The old mill is run by Anna. Bob left the harbour on Monday."
ASKED = "Who runs the old mill?"
HEAVY = ("torch", "numpy", "transformers", "huggingface_hub", "safetensors", "matplotlib", "yaml", "rich")


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


@pytest.fixture
def unspoken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Program]:
    """Call the program as `unspoken ARGS` does, in this process."""
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
    from unspoken.channels.kv import content_columns
    from unspoken.session import Agent

    folder = tmp_path_factory.mktemp("made")
    (folder / "doc.txt").write_text(DOCUMENT)
    read = Agent("lyra", open_model("smollm2-135m", engine="fake")).read(DOCUMENT).cache
    write_cache(content_columns(read), folder / "good.kv.safetensors")
    write_cache(read, folder / "whole.kv.safetensors")
    return folder


def _folder_of(result: Path) -> list[str]:
    return sorted(str(path.relative_to(result)) for path in result.rglob("*"))


def test_capture_inspect_verify_ask(unspoken: Program, made: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.kv.safetensors"
    captured = unspoken("capture", made / "doc.txt", "--out", file, "--engine", "fake")
    assert captured.code == 0
    assert f"{file}: {len(DOCUMENT)} columns of smollm2-135m as bfloat16" in captured.out
    assert f'unspoken ask --cache {file} "your question"' in captured.out
    shown = unspoken("inspect", file)
    assert shown.code == 0
    for words in ("agent 'lyra'", "names prove nothing", f"{len(DOCUMENT)} columns", "position-free", "content 0-60"):
        assert words in shown.out
    checked = unspoken("verify", file, "--for", "smollm2-135m", "--engine", "fake")
    assert checked.code == 0
    assert "all digests match" in checked.out
    assert "it can be used" in checked.out
    asked = unspoken("ask", ASKED, "--cache", file, "--engine", "fake")
    assert (asked.code, asked.out) == (0, "Anna\n")
    assert asked.err.startswith("[kv: ")
    assert _folder_of(tmp_path) == ["a.kv.safetensors"]


def test_the_same_as_json(unspoken: Program, made: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.kv.safetensors"
    captured = unspoken("capture", made / "doc.txt", "--out", file, "--engine", "fake", "--json").data
    assert captured.keys() == {
        "file", "bytes", "columns", "dtype", "mode", "seconds_read", "seconds_write", "digest"
    }  # fmt: skip
    assert (captured["bytes"], captured["columns"], captured["mode"]) == (file.stat().st_size, 60, "insert")
    shown = unspoken("inspect", file, "--json").data
    assert shown.keys() == {"version", "cache", "digests", "digest", "file_bytes"}
    assert shown["digest"] == captured["digest"]
    assert shown["cache"]["sender"] == "lyra"
    checked = unspoken("verify", file, "--for", "smollm2-135m", "--engine", "fake", "--json").data
    assert checked == {"sound": True, "mismatches": []}
    asked = unspoken("ask", ASKED, "--cache", file, "--engine", "fake", "--json").data
    assert asked.keys() == {
        "answer", "channel", "bytes_moved", "tokens_prefilled", "tokens_skipped", "seconds", "lossy", "lineage",
        "message",
    }  # fmt: skip
    assert (asked["answer"], asked["channel"], asked["tokens_skipped"]) == ("Anna", "kv", 60)
    assert asked["seconds"]["total"] == pytest.approx(
        sum(value for name, value in asked["seconds"].items() if name != "total")
    )


@pytest.mark.parametrize(
    ("channel", "message"), [("kv", None), ("text@64", str), ("kv-continue", None), ("none", None)]
)
def test_ask_about_a_document(unspoken: Program, made: Path, channel: str, message: type | None) -> None:
    asked = unspoken("ask", ASKED, "--about", made / "doc.txt", "--channel", channel, "--engine", "fake", "--json").data
    assert asked["channel"] == channel
    assert asked["answer"] == ("unknown" if channel == "none" else "Anna")
    assert isinstance(asked["message"], message) if message else asked["message"] is None


def test_a_document_from_standard_input(unspoken: Program, tmp_path: Path) -> None:
    file = tmp_path / "a.kv.safetensors"
    captured = unspoken("capture", "-", "--out", file, "--engine", "fake", stdin=DOCUMENT.encode())
    assert captured.code == 0
    assert peek(file).manifest.cache.token_ids == tuple(DOCUMENT.encode())
    asked = CliRunner().invoke(cli, ["ask", ASKED, "--about", "-", "--engine", "fake"], input=DOCUMENT)
    assert (asked.exit_code, asked.stdout) == (0, "Anna\n")


def test_a_whole_cache_is_exact_and_continued_from(unspoken: Program, made: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.kv.safetensors"
    captured = unspoken("capture", made / "doc.txt", "--out", file, "--engine", "fake", "--whole", "--json").data
    assert (captured["mode"], captured["dtype"]) == ("continue", "float32")
    cache = peek(file).manifest.cache
    assert cache.rope == "applied"
    assert {span.kind for span in cache.spans} >= {"content", "system"}
    assert "ready to continue" in unspoken("inspect", file).out
    asked = unspoken("ask", ASKED, "--cache", file, "--engine", "fake", "--json").data
    assert (asked["channel"], asked["answer"], asked["lossy"]) == ("kv-continue", "Anna", False)


def test_tokens_can_be_kept_back(unspoken: Program, made: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.kv.safetensors"
    unspoken("capture", made / "doc.txt", "--out", file, "--engine", "fake", "--no-tokens", "--wire", "float16")
    cache = peek(file).manifest.cache
    assert (cache.token_ids, cache.dtype) == (None, "float16")
    assert "token ids  none" in unspoken("inspect", file).out
    assert unspoken("ask", ASKED, "--cache", file, "--engine", "fake").out == "Anna\n"


def test_a_card_makes_the_agent(unspoken: Program, made: Path, tmp_path: Path) -> None:
    card, file = tmp_path / "card.yaml", tmp_path / "a.kv.safetensors"
    card.write_text("name: cc\ncard: You are CC and count boats.\n")
    unspoken("capture", made / "doc.txt", "--out", file, "--engine", "fake", "--card", card, "--whole")
    cache = peek(file).manifest.cache
    assert cache.sender == "cc"
    assert b"You are CC and count boats." in bytes(token for token in cache.token_ids or () if token < 256)
    asked = unspoken("ask", ASKED, "--about", made / "doc.txt", "--engine", "fake", "--card", card)
    assert asked.out == "Anna\n"


def test_options_come_from_the_environment(
    unspoken: Program, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNSPOKEN_CAPTURE_ENGINE", "fake")
    monkeypatch.setenv("UNSPOKEN_CAPTURE_WIRE", "float16")
    assert unspoken("capture", made / "doc.txt", "--out", tmp_path / "a.kv").code == 0
    assert peek(tmp_path / "a.kv").manifest.cache.dtype == "float16"


def test_doctor_explains_the_machine(unspoken: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = unspoken("doctor")
    assert told.code == 0
    for line in ("machine ", "gpu ", "python ", "packages ", "cache ", "model     smollm2-135m"):
        assert f"\n{line}" in f"\n{told.out}"
    assert "problem" not in told.out
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("UNSPOKEN_HOME", str(tmp_path / "file" / "below"))
    assert "problem   The cache folder cannot be written." in unspoken("doctor").out
    facts = unspoken("doctor", "--json").data
    assert not facts["cache_folder_writable"]
    assert facts["machine"]["cores"] == os.cpu_count()


def test_prove_report_and_run(unspoken: Program, tmp_path: Path) -> None:
    proved = unspoken("prove", "--engine", "fake", "--items", 12, "--results", tmp_path)
    assert proved.code == 0
    for arm in ("none", "full-text", "text@32", "kv", "kv-continue", "kv-deranged", "kv-zero", "kv-random"):
        assert f"\n{arm} " in proved.out
    assert "Yes, understanding moved" in proved.out
    assert "168/168" in proved.err
    (folder,) = (tmp_path / "prove").iterdir()
    files = ["config.yaml", "env.json", "metrics.json", "report.html", "samples.jsonl.gz"]
    assert _folder_of(folder) == files
    assert f"Report: {folder / 'report.html'}" in proved.out

    before = {name: (folder / name).read_bytes() for name in files}
    (folder / "metrics.json").write_text("{}")
    (folder / "report.html").unlink()
    again = unspoken("report", folder, "--json")
    assert again.code == 0
    assert {name: (folder / name).read_bytes() for name in files} == before
    assert again.data == json.loads(before["metrics.json"])
    assert again.data["items"] == 12
    assert again.data["arms"]["kv"]["accuracy"] > again.data["arms"]["kv-deranged"]["accuracy"]


def test_an_experiment_from_yaml(unspoken: Program, tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text("name: small\nengine: fake\nitems: 12\ntimed_items: 0\narms: [none, kv]\n")
    ran = unspoken("run", file, "--results", tmp_path / "results", "--json")
    assert ran.code == 0
    assert set(ran.data["arms"]) == {"none", "kv"}
    (folder,) = (tmp_path / "results" / "small").iterdir()
    # The run keeps every option as it was run, also those nobody gave.
    assert "seed: 20261123" in (folder / "config.yaml").read_text()


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS), ["bench", "handoff"]], ids=" ".join)
def test_every_command_has_help(unspoken: Program, command: list[str]) -> None:
    for option in ("--help", "-h"):
        told = unspoken(*command, option)
        assert told.code == 0
        assert told.out.startswith(f"Usage: unspoken {' '.join(command)}".rstrip())
        assert told.err == ""
    if not command:
        assert all(f"  {name} " in told.out for name in COMMANDS)


def test_version(unspoken: Program) -> None:
    from unspoken import __version__

    assert unspoken("--version").out == f"unspoken, version {__version__}\n"


def test_an_interrupt_is_no_crash(unspoken: Program, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("unspoken.cli.capture.read_text", interrupted)
    stopped = unspoken("capture", made / "doc.txt", "--out", made / "never.kv", "--engine", "fake")
    assert (stopped.code, stopped.err.strip()) == (1, "Interrupted.")


# Bad input. A case makes its files in a folder and returns the arguments.


def _forged(made: Path, into: Path, change: Callable[[dict[str, Any], dict[str, Any], bytearray], None]) -> Path:
    """Write the good file with something changed in it, signed as a forger would sign it."""
    raw = (made / "good.kv.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    fields, data = json.loads(raw[8 : 8 + length]), bytearray(raw[8 + length :])
    manifest = json.loads(fields["__metadata__"][MANIFEST_KEY])
    change(manifest, fields, data)
    whole = {key: value for key, value in manifest.items() if key != "digest"}
    canonical = json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()
    manifest["digest"] = hashlib.sha256(canonical).hexdigest()
    fields["__metadata__"][MANIFEST_KEY] = json.dumps(manifest)
    text = json.dumps(fields).encode()
    text += b" " * (-len(text) % 8)
    path = into / "bad.kv.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def _nan(manifest: dict[str, Any], fields: dict[str, Any], data: bytearray) -> None:
    start, stop = fields["layers.0.keys"]["data_offsets"]
    struct.pack_into("<f", data, start, float("nan"))
    manifest["digests"]["layers.0.keys"] = hashlib.sha256(data[start:stop]).hexdigest()


def _overlapping(_: dict[str, Any], fields: dict[str, Any], __: bytearray) -> None:
    fields["layers.1.keys"]["data_offsets"] = fields["layers.0.keys"]["data_offsets"]


def _raw(change: Callable[[bytes], bytes]) -> Callable[[Path, Path], Path]:
    def make(made: Path, into: Path) -> Path:
        path = into / "bad.kv.safetensors"
        path.write_bytes(change((made / "good.kv.safetensors").read_bytes()))
        return path

    return make


def _field(name: str, value: Any) -> Callable[[Path, Path], Path]:
    def change(manifest: dict[str, Any], *_: Any) -> None:
        (manifest if name in manifest else manifest["cache"])[name] = value

    return lambda made, into: _forged(made, into, change)


def _one_layer(made: Path, into: Path) -> Path:
    cache: KVCache = read_cache(made / "good.kv.safetensors", layers=[1])
    write_cache(cache, into / "bad.kv.safetensors")
    return into / "bad.kv.safetensors"


BAD_FILES: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "truncated": (_raw(lambda raw: raw[:-100]), "is truncated"),
    "oversized header": (_raw(lambda raw: struct.pack("<Q", 1 << 62) + raw[8:]), "claims a header of"),
    "overlapping": (lambda made, into: _forged(made, into, _overlapping), "tensors overlap"),
    "zero layers": (_field("layers", []), "holds zero layers"),
    "unknown dtype": (_field("dtype", "int3"), "unknown element type 'int3'"),
    "future version": (_field("version", 2), "has format version 2, this program reads version 1"),
    "no cache at all": (_raw(lambda raw: b"{" * 64), "claims a header of"),
    "missing": (lambda made, into: into / "missing.kv", "No such file or directory"),
    "folder": (lambda made, into: into, "no regular file"),
    "NaN": (lambda made, into: _forged(made, into, _nan), "NaN or infinite numbers in 'layers.0.keys'"),
    "flipped bit": (_raw(lambda raw: raw[:-1] + bytes((raw[-1] ^ 1,))), "does not match its digest"),
    "one layer": (_one_layer, "holds 1 of the 2 layers"),
}
IN_THE_DATA = ("NaN", "flipped bit", "one layer")


@pytest.mark.parametrize("name", sorted(BAD_FILES))
@pytest.mark.parametrize("command", ["ask", "verify", "inspect"])
def test_a_bad_cache_file_is_one_clear_error(
    unspoken: Program, made: Path, tmp_path: Path, command: str, name: str
) -> None:
    make, problem = BAD_FILES[name]
    path = make(made, tmp_path)
    rest = {
        "ask": ("ask", ASKED, "--cache", path, "--engine", "fake"),
        "verify": ("verify", path, "--for", "smollm2-135m", "--engine", "fake"),
        "inspect": ("inspect", path),
    }
    before = _folder_of(tmp_path)
    told = unspoken(*rest[command])
    if command == "inspect" and name in IN_THE_DATA:
        assert told.code == 0  # Only the header is looked at.
        return
    _clear(told, problem)
    assert "it can be used" not in told.out
    assert _folder_of(tmp_path) == before


def _clear(told: Result, problem: str) -> None:
    """See one error sentence and a hint, and nothing of the program's insides."""
    assert told.code == 2
    assert told.err.count("Error:") == 1
    assert "Traceback" not in told.err
    error, hint = told.err.strip().splitlines()
    assert error.startswith("Error: ")
    assert problem in error
    assert error.endswith((".", "?")), error
    assert hint.endswith((".", "?", ")")), hint


Case = Callable[[Path, Path], tuple[object, ...]]
FAKE = ("--engine", "fake")


def _text(into: Path, data: bytes | str) -> Path:
    path = into / "text.txt"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def _capture(data: bytes | str, *more: object) -> Case:
    return lambda made, into: ("capture", _text(into, data), "--out", into / "out.kv", *FAKE, *more)


def _ask(*args: object) -> Case:
    return lambda made, into: (
        *("ask", *args),
        *(() if "--about" in args else ("--cache", made / "good.kv.safetensors")),
        *FAKE,
    )


def _about(*args: object, question: str = ASKED) -> Case:
    return lambda made, into: ("ask", question, "--about", made / "doc.txt", *FAKE, *args)


def _yaml(text: str) -> Case:
    return lambda made, into: ("run", _text(into, text), "--results", into / "results")


def _prove(*args: object) -> Case:
    return lambda made, into: ("prove", "--items", 4, *FAKE, "--results", into / "results", *args)


def _card(text: str) -> Case:
    return lambda made, into: ("ask", ASKED, "--about", made / "doc.txt", *FAKE, "--card", _text(into, text))


def _run_folder(into: Path, **files: bytes) -> Path:
    folder = into / "run"
    folder.mkdir()
    for name, data in {"config": b"engine: fake\nitems: 4\narms: [none]\n", "env": b"{}", **files}.items():
        suffix = {"config": ".yaml", "env": ".json", "samples": ".jsonl", "packed": ".jsonl.gz"}[name]
        (folder / f"{name.replace('packed', 'samples')}{suffix}").write_bytes(data)
    return folder


def _report(**files: bytes) -> Case:
    return lambda made, into: ("report", _run_folder(into, **files))


def _below_a_file(made: Path, into: Path) -> tuple[object, ...]:
    return ("prove", "--items", 12, *FAKE, "--results", _text(into, "in the way") / "below")


BAD_INPUT: dict[str, tuple[Case, str]] = {
    "empty document": (_capture(""), "text.txt is empty: there is nothing to understand"),
    "blank document": (_capture(" \n\t\n"), "is empty"),
    "binary document": (_capture(b"\x89PNG\xff\xfe\x00"), "is not UTF-8 text"),
    "missing document": (
        lambda made, into: ("capture", into / "no.txt", "--out", into / "out.kv", *FAKE),
        "no.txt cannot be read: No such file or directory",
    ),
    "folder as a document": (lambda made, into: ("capture", into, "--out", into / "o", *FAKE), "Is a directory"),
    "document longer than the context": (_capture("word " * 2000), "needs 10037 positions"),
    "missing folder for the file": (_capture("x", "--out", "/no/where/a.kv"), "/no/where does not exist"),
    "unknown element type on the wire": (_capture("x", "--wire", "int3"), "no element type 'int3'"),
    "unknown element type": (_capture("x", "--dtype", "int3"), "no element type 'int3'"),
    "unknown engine": (_capture("x", "--engine", "fak"), "no engine named 'fak'"),
    "unknown model": (_capture("x", "--engine", "transformers", "--model", "smollm2"), "no model 'smollm2'"),
    "model folder without a model": (
        lambda made, into: ("ask", ASKED, "--cache", made / "good.kv.safetensors", "--model", into),
        "holds no model",
    ),
    "wrong model": (
        _ask(ASKED, "--model", "another"),
        "was made by 'smollm2-135m' and does not fit 'another': weights",
    ),
    "wrong model to verify": (
        lambda made, into: ("verify", made / "good.kv.safetensors", "--for", "another", *FAKE),
        "does not fit 'another': weights",
    ),
    "empty question": (_ask(""), "The question is empty"),
    "blank question": (_ask("  \n"), "The question is empty"),
    "question that is no text": (_ask("what \udcff"), "The question is not UTF-8 text"),
    "question longer than the context": (_ask("why " * 2000), "positions; 'smollm2-135m' was made for 4096"),
    "empty document to ask about": (
        lambda made, into: ("ask", ASKED, "--about", _text(into, ""), *FAKE),
        "is empty",
    ),
    "nothing to ask about": (lambda made, into: ("ask", ASKED, *FAKE), "needs one thing to be about"),
    "two things to ask about": (_about("--cache", "a.kv"), "needs one thing to be about"),
    "unknown channel": (_about("--channel", "kw"), "no channel named 'kw'"),
    "channel with a wrong option": (_about("--channel", "kv@7"), "does not take the options of 'kv@7'"),
    "channel with a wrong amount": (_about("--channel", "text@many"), "many"),
    "agents of one name": (_about("--agent", "lyra"), "two or more agents of different names"),
    "missing card": (_about("--card", "/no/card.yaml"), "card /no/card.yaml cannot be read"),
    "card that is no YAML": (_card("a: [b"), "is not YAML"),
    "card without a name": (_card("card: You are nobody."), "lacks a name or a card"),
    "unknown arm": (_prove("--arms", "none,kw"), "no channel named 'kw'"),
    "arm with a wrong option": (_prove("--arms", "kv@7"), "does not take the options"),
    "too few items for two texts": (_prove("--arms", "kv,kv-deranged"), "one source only"),
    "no arm": (_prove("--arms", ","), "arms are []"),
    "arm twice": (_prove("--arms", "kv,kv"), "arms are ['kv', 'kv']"),
    "results below a file": (_below_a_file, "cannot be written: Not a directory"),
    "unknown key in YAML": (_yaml("engine: fake\nitmes: 4\n"), "unknown field `itmes`"),
    "wrong value in YAML": (_yaml("engine: fake\nitems: many\n"), "Expected `int`, got `str`"),
    "too few items in YAML": (_yaml("engine: fake\nitems: 1\n"), "items is 1, expected 2 or more"),
    "unknown task in YAML": (_yaml("engine: fake\ntask: chess\nitems: 4\n"), "no task named 'chess'"),
    "unknown arm in YAML": (_yaml("engine: fake\nitems: 4\narms: [kw]\n"), "no channel named 'kw'"),
    "empty YAML": (_yaml(""), "is not valid"),
    "no YAML": (_yaml("a: [b"), "is not valid"),
    "control characters in YAML": (_yaml("\x00\x1b[2J"), "is not valid"),
    "missing YAML": (lambda made, into: ("run", into / "no.yaml", "--results", into), "no.yaml cannot be read"),
    "report of nothing": (lambda made, into: ("report", into), "is no run folder"),
    "report of an unfinished run": (_report(), "is unfinished: 0 of its cells"),
    "report of a run with a bad configuration": (_report(config=b"items: many"), "is damaged: Expected `int`"),
    "report of a run with a bad record": (_report(env=b"{"), "is damaged"),
    "report of a run with bad samples": (_report(samples=b'{"a": 1}\n'), "is damaged"),
    "report of a run with a bad archive": (_report(packed=b"garbage"), "is damaged: Not a gzipped file"),
    "report of a run with half an archive": (_report(packed=gzip.compress(b"x" * 99)[:-9]), "is damaged"),
    "bad lengths for the bench": (
        lambda made, into: ("bench", "handoff", "--tokens", "8,x", *FAKE),
        "--tokens is '8,x'",
    ),
    "no lengths for the bench": (lambda made, into: ("bench", "handoff", "--tokens", "", *FAKE), "--tokens is ''"),
    "lengths over the context": (
        lambda made, into: ("bench", "handoff", "--tokens", "9999", *FAKE, "--results", into / "results"),
        "9999 tokens with a question does not fit",
    ),
}


@pytest.mark.parametrize("name", sorted(BAD_INPUT))
def test_bad_input_is_one_clear_error(
    unspoken: Program, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    make, problem = BAD_INPUT[name]
    monkeypatch.chdir(tmp_path)
    args = make(made, tmp_path)
    before = _folder_of(tmp_path)
    told = unspoken(*args)
    _clear(told, problem)
    assert told.err.isprintable() or told.err.count("\n") == 2
    if "verify" not in args:
        assert told.out == ""
    assert _folder_of(tmp_path) == before


USAGE: dict[str, tuple[object, ...]] = {
    "unknown command": ("capturre",),
    "unknown option": ("ask", ASKED, "--chanel", "kv"),
    "no document": ("capture",),
    "no question": ("ask",),
    "no file to write": ("capture", "doc.txt"),
    "tokens that are none": ("ask", ASKED, "--tokens", "many"),
    "no tokens": ("ask", ASKED, "--tokens", "0"),
    "negative tokens": ("ask", ASKED, "--tokens", "-5"),
    "one item": ("prove", "--items", "1", *FAKE),
    "seed that is none": ("prove", "--seed", "lucky", *FAKE),
    "no model to verify for": ("verify", "a.kv"),
    "file in the way of results": ("prove", "--items", "4", *FAKE, "--results", __file__),
    "folder in the way of the file": ("capture", __file__, *FAKE, "--out", "/tmp"),  # noqa: S108
}


@pytest.mark.parametrize("name", sorted(USAGE))
def test_bad_options_are_told_with_where_to_look(unspoken: Program, name: str, tmp_path: Path) -> None:
    told = unspoken(*USAGE[name])
    assert told.code == 2
    assert told.out == ""
    assert told.err.count("Error:") == 1
    assert "Traceback" not in told.err
    assert "Try 'unspoken" in told.err
    assert "--help" in told.err or "-h" in told.err


def test_a_hub_that_is_switched_off_is_told(
    unspoken: Program, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The hub's library reads its settings once, when it is imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for command in (
        ("ask", ASKED, "--cache", made / "good.kv.safetensors", "--model", "owner/missing"),
        ("verify", made / "good.kv.safetensors", "--for", "qwen3-0.6b"),
        ("prove", "--model", "owner/missing", "--results", tmp_path / "results"),
    ):
        _clear(unspoken(*command), "is not in the local cache and the hub gave nothing")
    assert _folder_of(tmp_path) == []


def test_a_cache_folder_that_cannot_be_written_is_told(
    unspoken: Program, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("UNSPOKEN_HOME", str(tmp_path / "file" / "below"))
    told = unspoken("capture", made / "doc.txt", "--out", tmp_path / "a.kv")
    _clear(told, "cannot be written: Not a directory")
    assert "UNSPOKEN_HOME" in told.err
    assert _folder_of(tmp_path) == ["file"]
    # The fake keeps nothing but the gate's memory, which is no loss.
    assert unspoken("capture", made / "doc.txt", "--out", tmp_path / "a.kv", *FAKE).code == 0


def test_a_disk_that_fills_up_leaves_the_old_file(
    unspoken: Program, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    file = tmp_path / "a.kv.safetensors"
    file.write_bytes(b"old")
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        told = unspoken("capture", made / "doc.txt", "--out", file, *FAKE)
    _clear(told, "cannot be written: No space left on device")
    assert _folder_of(tmp_path) == ["a.kv.safetensors"]
    assert file.read_bytes() == b"old"


def test_what_a_file_says_cannot_steer_the_terminal(unspoken: Program, made: Path, tmp_path: Path) -> None:
    evil = "vera\x1b[2J\ndigest     0000\x9b31m"
    path = _field("sender", evil)(made, tmp_path)
    shown = unspoken("inspect", path)
    assert shown.code == 0
    assert all(line.isprintable() for line in shown.out.splitlines())
    assert sum(line.startswith("digest ") for line in shown.out.splitlines()) == 1
    path = _field("spec", json.loads(unspoken("inspect", path, "--json").out)["cache"]["spec"] | {"weights": evil})(
        made, tmp_path
    )
    told = unspoken("ask", ASKED, "--cache", path, *FAKE)
    _clear(told, "weights is vera [2J digest")
    assert all(line.isprintable() for line in told.err.splitlines())


# The program as a process of its own.


def _process(*args: object, stdin: bytes = b"", **environment: str) -> Result:
    env = os.environ | environment
    command = [sys.executable, "-m", "unspoken", *map(str, args)]
    done = subprocess.run(command, input=stdin, capture_output=True, check=False, env=env)
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import io, json, sys\n"
        "from contextlib import redirect_stdout, suppress\n"
        "from unspoken.cli import COMMANDS, main\n"
        f"loaded = {{}}; heavy = {HEAVY!r}\n"
        "for command in ([], *([name] for name in COMMANDS), ['bench', 'handoff'], ['--version']):\n"
        "    sys.argv = ['unspoken', *command, *([] if command == ['--version'] else ['--help'])]\n"
        "    with redirect_stdout(io.StringIO()), suppress(SystemExit): main()\n"
        "    loaded[' '.join(command)] = [name for name in heavy if name in sys.modules]\n"
        "print(json.dumps(loaded))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == len(COMMANDS) + 3
    assert not any(found.values()), found


def test_the_module_is_the_program(made: Path, tmp_path: Path) -> None:
    path = _raw(lambda raw: raw[:-100])(made, tmp_path)
    told = _process("inspect", path)
    _clear(told, "is truncated")
    assert _process("inspect", made / "good.kv.safetensors").code == 0
    with subprocess.Popen(
        [sys.executable, "-m", "unspoken", "inspect", str(made / "good.kv.safetensors"), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as piped:
        assert piped.stdout is not None
        assert piped.stderr is not None
        piped.stdout.close()  # As `| head` does.
        assert b"Traceback" not in piped.stderr.read()


def test_bench_measures_and_keeps(tmp_path: Path) -> None:
    args = ("bench", "handoff", *FAKE, "--tokens", "64", "--repeats", 1, "--results", tmp_path / "results", "--json")
    ran = _process(*args, UNSPOKEN_HOME=str(tmp_path / "home"))
    assert ran.code == 0, ran.err
    (row,) = ran.data["rows"]
    assert (row["tokens"], ran.data["engine"]) == (64, "fake")
    (kept,) = (tmp_path / "results" / "bench-handoff").glob("*/metrics.json")
    assert json.loads(kept.read_bytes())["rows"] == [row]


def test_bytes_on_standard_input_are_no_text_in_any_locale(tmp_path: Path) -> None:
    home = {"UNSPOKEN_HOME": str(tmp_path / "home")}
    for locale in ("C", "C.UTF-8"):
        told = _process("capture", "-", "--out", tmp_path / "a.kv", *FAKE, stdin=b"\xff\xfeabc", LC_ALL=locale, **home)
        _clear(told, "is not UTF-8 text")
    told = _process("capture", "-", "--out", tmp_path / "a.kv", *FAKE, stdin="Zoë".encode(), LC_ALL="C", **home)
    assert told.code == 0
    assert peek(tmp_path / "a.kv").manifest.cache.token_ids == tuple("Zoë".encode())


def test_a_run_killed_at_any_moment_goes_on_where_it_was(tmp_path: Path) -> None:
    args = ("prove", *FAKE, "--items", 600, "--arms", "none,kv", "--results", tmp_path / "results", "--json")
    # Without git, so that an edit of the code between the two starts does not make it another run.
    env = {"UNSPOKEN_HOME": str(tmp_path / "home"), "GIT_DIR": os.devnull}
    command = [sys.executable, "-m", "unspoken", *map(str, args)]
    with subprocess.Popen(
        command, env=os.environ | env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        samples = _wait_for_samples(tmp_path / "results", process)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    kept = [line for line in samples.read_bytes().split(b"\n")[:-1] if line]
    (folder,) = (tmp_path / "results" / "prove").iterdir()
    assert not (folder / "metrics.json").exists()
    with samples.open("ab") as file:
        file.write(kept[0][:25])  # A line that the kill cut short.

    again = _process(*args, **env)
    assert again.code == 0, again.err
    assert list((tmp_path / "results" / "prove").iterdir()) == [folder]
    assert _folder_of(folder) == ["config.yaml", "env.json", "metrics.json", "report.html", "samples.jsonl.gz"]
    lines = gzip.decompress((folder / "samples.jsonl.gz").read_bytes()).splitlines()
    cells = [(each["item"], each["arm"], each["alone"]) for each in map(json.loads, lines)]
    assert len(cells) == len(set(cells)) == 2 * 600 + 2 * 2
    assert set(kept) <= set(lines)  # What was done is not done again: not one figure of it has changed.
    assert again.data["items"] == 600
    assert set(again.data["arms"]) == {"none", "kv"}
    assert len(json.loads((folder / "env.json").read_bytes())["starts"]) == 2


def _wait_for_samples(results: Path, process: subprocess.Popen[bytes]) -> Path:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        for path in results.glob("prove/*/samples.jsonl"):
            if path.read_bytes().count(b"\n") >= 50:
                return path
        time.sleep(0.01)
    raise AssertionError(f"No samples before the program ended with {process.poll()}.")
