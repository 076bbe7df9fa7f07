"""Models of the hub: from its cache, or asked for; nothing is ever fetched in here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from unspoken.errors import ModelNotFound
from unspoken.modelstore import ModelFiles, resolve

REVISION = "0123456789abcdef0123456789abcdef01234567"


def _hub(tmp_path: Path, name: str, code: str = "", **environment: str) -> dict[str, str]:
    """Resolve a hub id in a process of its own, which reads the hub's settings when it starts."""
    program = (
        "import json, sys\n"
        "from unspoken.modelstore import resolve\nfrom unspoken.errors import UnspokenError\n"
        "try: found = {'folder': str(resolve(sys.argv[1]).folder), 'name': resolve(sys.argv[1]).name}\n"
        "except UnspokenError as e: found = {'kind': type(e).__name__, 'problem': e.problem, 'hint': e.hint}\n"
        "print(json.dumps(found | {'torch': 'torch' in sys.modules}))\n"
    )
    env = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"} | environment
    for unwanted in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN"):
        env.pop(unwanted, None)
    done = subprocess.run([sys.executable, "-c", program, name], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    assert not found.pop("torch")
    return found


def _cached(tmp_path: Path, *names: str) -> Path:
    """Lay a model out as the hub's own cache does."""
    repository = tmp_path / "hf" / "hub" / "models--owner--tiny"
    snapshot = repository / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION)
    for name in names:
        (snapshot / name).write_text("{}")
    return snapshot


def test_a_model_in_the_local_hub_cache_needs_no_network(tmp_path: Path) -> None:
    snapshot = _cached(tmp_path, "config.json", "model.safetensors", "tokenizer.json")
    nowhere = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    assert _hub(tmp_path, "owner/tiny", **nowhere) == {"folder": str(snapshot), "name": "owner/tiny"}


def test_a_hub_that_is_switched_off_is_told(tmp_path: Path) -> None:
    found = _hub(tmp_path, "owner/missing", HF_HUB_OFFLINE="1")
    assert found["kind"] == "ModelNotFound"
    assert "The model 'owner/missing' is not in the local cache" in found["problem"]
    assert "\n" not in found["problem"]
    assert "HF_HUB_OFFLINE" in found["hint"]
    assert "smollm2-135m" in found["hint"]


def test_a_hub_out_of_reach_is_told(tmp_path: Path) -> None:
    found = _hub(tmp_path, "owner/missing", HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:9")
    assert found["kind"] == "ModelNotFound"
    assert "the hub gave nothing" in found["problem"]


@pytest.mark.parametrize(("local", "asked"), [(["config.json"], 2), (["config.json", "model.safetensors"], 1)])
def test_the_hub_is_asked_for_what_the_local_cache_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local: list[str], asked: int
) -> None:
    snapshot, calls = _cached(tmp_path, *local), []

    def download(repository: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
        calls.append((repository, local_files_only))
        assert not {"*.bin", "*.py", "*.pt"} & set(allow_patterns)  # Nothing that could run is ever fetched.
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert resolve("owner/tiny").folder == snapshot
    assert calls == [("owner/tiny", True), ("owner/tiny", False)][:asked]


def test_a_short_name_leads_to_its_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot, calls = _cached(tmp_path, "model.safetensors"), []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: calls.append(name) or str(snapshot))
    assert resolve("qwen3-0.6b") == ModelFiles(snapshot, "qwen3-0.6b")
    assert calls == ["Qwen/Qwen3-0.6B"]


def test_a_hub_id_of_the_wrong_form_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelNotFound, match="is no hub id") as caught:
        resolve("owner/na me")
    assert caught.value.hint == "A hub id has the form owner/name."
