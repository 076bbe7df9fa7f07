"""Bad input on the command line: one error sentence and a hint, and nothing written.

A case makes its files in a folder and returns the arguments.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .program import ASKED, FAKE, Program, clear, folder_of

Case = Callable[[Path, Path], tuple[object, ...]]


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
    "unknown element type on the wire": (_capture("x", "--wire", "int3"), "no codec named 'int3'"),
    "compression in a file": (_capture("x", "--wire", "int8+blosc2"), "cannot hold 'int8+blosc2'"),
    "unknown element type": (_capture("x", "--dtype", "int3"), "no element type 'int3'"),
    "agent's name that is no text": (_capture("x", "--agent", "\udcff"), "The agent's name is not UTF-8 text"),
    "model's name that is no text": (_capture("x", "--model", "\udcff"), "The model's name is not UTF-8 text"),
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
    "channel with a wrong option": (_about("--channel", "kv@7"), "has no option 'amount', found in 'kv@7'"),
    "channel with a wrong amount": (_about("--channel", "text@many"), "many"),
    "agents of one name": (_about("--sender", "lyra", "--agent", "lyra"), "two or more agents of different names"),
    "more senders than documents": (
        _about("--sender", "lyra", "--sender", "cc"),
        "1 documents and the senders lyra, cc",
    ),
    "impossible share": (_about("--channel", "need@1.5"), "'1.5' is no share"),
    "need without attention": (_about("--channel", "need@0.3"), "needs attention weights, and the engine 'fake'"),
    "a channel for a file": (
        lambda made, into: ("ask", "Who?", "--cache", into / "x.kv", "--channel", "kv", *FAKE),
        "is not handed over by 'kv'",
    ),
    "unknown way to compose": (_about("--channel", "compose:glue"), "no way 'glue' to compose"),
    "missing card": (_about("--card", "/no/card.yaml"), "card /no/card.yaml cannot be read"),
    "card that is no YAML": (_card("a: [b"), "is none: while parsing"),
    "card without a name": (_card("card: You are nobody."), "is none: Object missing required field `name`"),
    "unknown arm": (_prove("--arms", "none,kw"), "no channel named 'kw'"),
    "arm with a wrong option": (_prove("--arms", "kv@7"), "has no option 'amount'"),
    "too few items for two texts": (_prove("--arms", "kv,kv-deranged"), "one source only"),
    "no arm": (_prove("--arms", ","), "arms are []"),
    "arm twice": (_prove("--arms", "kv,kv"), "arms are ['kv', 'kv']"),
    "results below a file": (_below_a_file, "cannot be written: Not a directory"),
    "unknown key in YAML": (_yaml("engine: fake\nitmes: 4\n"), "unknown field `itmes`"),
    "wrong value in YAML": (_yaml("engine: fake\nitems: many\n"), "Expected `int`, got `str`"),
    "too few items in YAML": (_yaml("engine: fake\nitems: 1\n"), "items is 1, expected 2 or more"),
    "unknown task in YAML": (_yaml("engine: fake\ntask: chess\nitems: 4\n"), "no task named 'chess'"),
    "unknown arm in YAML": (_yaml("engine: fake\nitems: 4\narms: [kw]\n"), "no channel named 'kw'"),
    "task without its file in YAML": (_yaml("engine: fake\ntask: reading\n"), "asks from a file"),
    "missing data file in YAML": (_yaml("engine: fake\ntask: reading\ndata: no.jsonl\n"), "no.jsonl cannot be read"),
    "file for a task without one": (_yaml("engine: fake\ndata: facts.jsonl\n"), "reads no file"),
    "task with a wrong option": (_yaml("engine: fake\ntask: private-facts:colour=red\n"), "has no option 'colour'"),
    "sweep without cells": (_yaml("engine: fake\ncells: []\n"), "has no cells"),
    "sweep with an unknown key": (_yaml("engine: fake\ncells: [{itmes: 4}]\n"), "unknown field `itmes`"),
    "sweep with two cells of one name": (_yaml("engine: fake\ncells: [{}, {}]\n"), "two cells private-facts/smollm2"),
    "sweep with a bad second cell": (_yaml("engine: fake\ncells: [{}, {model: b, task: chess}]\n"), "no task named"),
    "cells of no sweep": (
        lambda made, into: ("run", _text(into, "engine: fake\n"), "--cells", "a", "--results", into / "results"),
        "is one experiment and has no cells",
    ),
    "cells that a sweep has not": (
        lambda made, into: (
            *("run", _text(into, "engine: fake\ncells: [{model: a}, {model: b}]\n"), "--cells", "zz"),
            *("--results", into / "results"),
        ),
        "No cell of the sweep",
    ),
    "report of an unfinished sweep": (
        lambda made, into: ("report", _run_folder(into, config=b"name: s\nengine: fake\ncells: [{model: a}]\n")),
        "is unfinished: it lacks private-facts/a/fake",
    ),
    "empty YAML": (_yaml(""), "is not valid"),
    "no YAML": (_yaml("a: [b"), "is not valid"),
    "control characters in YAML": (_yaml("\x00\x1b[2J"), "is not valid"),
    "missing YAML": (lambda made, into: ("run", into / "no.yaml", "--results", into), "no.yaml cannot be read"),
    "report of nothing": (lambda made, into: ("report", into), "is no run folder"),
    "report of an unfinished run": (_report(), "is unfinished: 0 of its samples"),
    "an experiment's seed below 0": (_yaml("seed: -1\n"), "seed is -1, expected 0 or more"),
    "a data file with a name that none can have": (
        _yaml('engine: fake\ntask: reading\ndata: "a\\0b"\n'),
        "cannot be read: embedded null byte",
    ),
    "a model file with a name that none can have": (
        _yaml(f"model: {'x' * 400}.gguf\nengine: llamacpp\n"),
        "There is no model file",
    ),
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
    before = folder_of(tmp_path)
    told = unspoken(*args)
    clear(told, problem)
    assert told.err.isprintable() or told.err.count("\n") == 2
    if "verify" not in args:
        assert told.out == ""
    assert folder_of(tmp_path) == before


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
        clear(unspoken(*command), "is not in the local cache and the hub gave nothing")
    assert folder_of(tmp_path) == []


def test_a_cache_folder_that_cannot_be_written_is_told(
    unspoken: Program, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("UNSPOKEN_HOME", str(tmp_path / "file" / "below"))
    told = unspoken("capture", made / "doc.txt", "--out", tmp_path / "a.kv")
    clear(told, "cannot be written: Not a directory")
    assert "UNSPOKEN_HOME" in told.err
    assert folder_of(tmp_path) == ["file"]
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
        patched.setattr(os, "pwritev", full)
        told = unspoken("capture", made / "doc.txt", "--out", file, *FAKE)
    clear(told, "cannot be written: No space left on device")
    assert folder_of(tmp_path) == ["a.kv.safetensors"]
    assert file.read_bytes() == b"old"
