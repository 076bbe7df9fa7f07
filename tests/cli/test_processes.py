"""The program as a process of its own."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from unspoken.cachefile import peek
from unspoken.cli import COMMANDS

from .program import FAKE, Result, clear, folder_of

HEAVY = ("torch", "numpy", "transformers", "huggingface_hub", "safetensors", "matplotlib", "yaml", "rich")


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
    path = tmp_path / "bad.kv.safetensors"
    path.write_bytes((made / "good.kv.safetensors").read_bytes()[:-100])
    told = _process("inspect", path)
    clear(told, "is truncated")
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
        clear(told, "is not UTF-8 text")
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
    (folder,) = (tmp_path / "results" / "prove").glob("*/")
    assert not (folder / "metrics.json").exists()
    with samples.open("ab") as file:
        file.write(kept[0][:25])  # A line that the kill cut short.

    again = _process(*args, **env)
    assert again.code == 0, again.err
    assert list((tmp_path / "results" / "prove").glob("*/")) == [folder]
    assert folder_of(folder) == ["config.yaml", "env.json", "metrics.json", "report.html", "samples.jsonl.gz"]
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
