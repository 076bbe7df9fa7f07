"""The command line as a user meets it: what it prints and what it writes."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from unspoken.cachefile import peek
from unspoken.cli import COMMANDS, cli

from .program import ASKED, DOCUMENT, Program, folder_of


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
    assert folder_of(tmp_path) == ["a.kv.safetensors"]


@pytest.mark.parametrize(("wire", "more"), [("int8", ()), ("int8", ("--whole",)), ("int4", ())])
def test_a_packed_file_is_captured_inspected_verified_and_asked(
    unspoken: Program, made: Path, tmp_path: Path, wire: str, more: tuple[str, ...]
) -> None:
    file = tmp_path / "a.kv.safetensors"
    captured = unspoken("capture", made / "doc.txt", "--out", file, "--wire", wire, *more, "--engine", "fake")
    assert captured.code == 0
    assert f"columns of smollm2-135m as {wire}, " in captured.out
    shown = unspoken("inspect", file)
    assert f"2 heads of 8, packed as {wire} (" in shown.out
    assert "of float32 when unpacked)" in shown.out
    assert " > pack" in shown.out
    assert unspoken("inspect", file, "--json").data["cache"]["dtype"] == wire
    checked = unspoken("verify", file, "--for", "smollm2-135m", "--engine", "fake")
    assert checked.code == 0
    assert "all digests match" in checked.out
    asked = unspoken("ask", ASKED, "--cache", file, "--engine", "fake")
    assert asked.code == 0
    if wire == "int8":  # The fake reads its tokens from the numbers themselves, which int4 does not keep apart.
        assert asked.out == "Anna\n"


def test_codecs_are_measured_and_the_figures_kept(unspoken: Program, tmp_path: Path) -> None:
    given = ("bench", "codecs", "--tokens", "64", "--following", "8", "--repeats", "1", "--engine", "fake")
    found = unspoken(*given, "--results", tmp_path, "--json").data
    assert {"float32", "bfloat16", "float16", "int8", "int4"} <= {row["codec"] for row in found["rows"]}
    (folder,) = (tmp_path / "bench-codecs").iterdir()
    assert json.loads((folder / "metrics.json").read_text()) == found
    text = tmp_path / "text.txt"
    text.write_text("Anna runs the mill. " * 10)
    shown = unspoken(*given, "--results", tmp_path, "--text", text)
    assert shown.code == 0
    assert "64 tokens of smollm2-135m, 8 predicted" in shown.out
    assert f"Kept in {tmp_path / 'bench-codecs'}" in shown.out.replace("\n", "")
    told = unspoken(*given, "--results", tmp_path, "--text", made_short(tmp_path))
    assert told.code == 2
    assert "The text has 5 tokens, 72 are needed" in told.err


def made_short(folder: Path) -> Path:
    """A text of five tokens."""
    path = folder / "short.txt"
    path.write_text("short")
    return path


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
        "answer", "channel", "bytes_moved", "tokens_prefilled", "tokens_skipped", "recomputed", "seconds", "lossy",
        "lineage", "message",
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
    (folder,) = (tmp_path / "prove").glob("*/")
    files = ["config.yaml", "env.json", "metrics.json", "report.html", "samples.jsonl.gz"]
    assert folder_of(folder) == files
    assert f"Report: {folder / 'report.html'}" in proved.out

    # Packed in another way, as an older version may have done it: what is evidence stays as it was written.
    packed = folder / "samples.jsonl.gz"
    packed.write_bytes(gzip.compress(gzip.decompress(packed.read_bytes()), compresslevel=1, mtime=7))
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
    (folder,) = (tmp_path / "results" / "small").glob("*/")
    # The run keeps every option as it was run, also those nobody gave.
    assert "seed: 20261123" in (folder / "config.yaml").read_text()


def test_a_sweep_from_yaml_and_its_report(unspoken: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, results = tmp_path / "both.yaml", tmp_path / "results"
    file.write_text(
        "name: both\nengine: fake\nitems: 12\ntimed_items: 0\narms: [none, text-asked, kv, kv-deranged]\n"
        "cells: [{model: a}, {model: models/b.gguf}]\n"
    )
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "b.gguf").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    part = unspoken("run", file, "--results", results, "--cells", "/a/", "--json")
    assert (part.code, list(part.data["cells"])) == (0, ["private-facts/a/fake"])
    assert "Not finished yet, or run by another process: private-facts/b/fake" in part.err
    ran = unspoken("run", file, "--results", results)
    assert ran.code == 0
    for words in ("private-facts/a/fake", "private-facts/b/fake", "\nkv-deranged ", "Yes, understanding moved"):
        assert words in ran.out
    assert "\nThe founding claim, 8 points more accuracy and twice the speed at once, " in ran.out
    assert "It was tested in 2 cells, each a task, a model and an engine." in ran.out
    (folder,) = (path for path in (results / "both").iterdir() if path.is_dir())
    assert ran.out.strip().endswith(f"Report: {folder / 'report.html'}")

    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for path in before:
        if path.name in ("metrics.json", "report.html"):
            path.unlink()
    again = unspoken("report", folder, "--json")
    assert again.code == 0, again.err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert again.data == json.loads(before[folder / "metrics.json"])


@pytest.mark.parametrize(
    "command", [[], *([name] for name in COMMANDS), ["bench", "handoff"], ["bench", "codecs"]], ids=" ".join
)
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
