"""Whatever is no sound folder of a fuser is refused before it is a fuser: configuration, weights, names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from unspoken.errors import StorageError, UsageError
from unspoken.fusers import load_fuser
from unspoken.fusers.bottleneck import Bottleneck
from unspoken.fusers.folder import CONFIG, WEIGHTS

Change = Callable[[dict[str, Tensor]], None]
Asked = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """The hub within no reach, and what it was asked."""
    asked: Asked = []

    def none(repository: str, **options: Any) -> str:
        asked.append((repository, options))
        raise OSError("no network\nat all")

    monkeypatch.setattr("huggingface_hub.snapshot_download", none)
    return asked


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe{", "is not JSON"),
        (b"{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"kind": "bottleneck", "rank": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b"[]", "says no kind of fuser"),
        (b"{}", "says no kind of fuser"),
        (b'{"kind": 3}', "says no kind of fuser"),
        (b'{"model_type": "llama"}', "says no kind of fuser"),
    ],
)
def test_a_config_that_is_none_is_refused(kept: Path, text: bytes, message: str) -> None:
    (kept / CONFIG).write_bytes(text)
    for load in (load_fuser, Bottleneck.from_pretrained):
        with pytest.raises(UsageError, match=message):
            load(str(kept))


@pytest.mark.parametrize(
    "change",
    [
        {"rank": 81},
        {"rank": "80"},
        {"rank": None},
        {"rank": 80.5},
        {"rank": 0},
        {"rank": 10**12},
        {"rank": 10**30},
        {"width": 0},
        {"width": 10**9},
        {"blocks": 3},
        {"blocks": 10**9},
        {"pair": None},
        {"pair": {"sender": 1}},
        {"surprise": 1},
    ],
)
def test_a_config_that_describes_another_fuser_is_refused(kept: Path, change: dict[str, Any]) -> None:
    config = json.loads((kept / CONFIG).read_bytes())
    (kept / CONFIG).write_text(json.dumps(config | change))
    with pytest.raises(UsageError):
        load_fuser(str(kept))


@pytest.mark.parametrize("value", [0, -3, 10**15, "4"])
def test_a_pair_of_impossible_sizes_is_refused(kept: Path, value: object) -> None:
    config = json.loads((kept / CONFIG).read_bytes())
    config["pair"]["sender"]["layers"] = value
    (kept / CONFIG).write_text(json.dumps(config))
    with pytest.raises(UsageError, match="describes no fuser of the kind 'bottleneck'"):
        load_fuser(str(kept))


def test_an_unknown_kind_is_refused(kept: Path) -> None:
    config = json.loads((kept / CONFIG).read_bytes())
    (kept / CONFIG).write_text(json.dumps(config | {"kind": "bottleneq"}))
    with pytest.raises(UsageError, match="There is no fuser named 'bottleneq'"):
        load_fuser(str(kept))
    with pytest.raises(UsageError, match="holds a fuser of another kind than 'bottleneck'"):
        Bottleneck.from_pretrained(kept)


def _set(name: str, tensor: Tensor) -> Change:
    return lambda found: found.update({name: tensor})


def _poked(name: str, value: float) -> Change:
    def change(found: dict[str, Tensor]) -> None:
        found[name] = found[name].clone()
        found[name].view(-1)[3] = value

    return change


SCALED = "up.scale"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.pop("sender_mean"), r"lack \['sender_mean'\] and have nothing besides"),
        (lambda found: found.pop("up"), r"lack \['up'\]"),
        (_set("more", torch.zeros(1)), r"lack nothing and have \['more'\] besides"),
        (_set("more.scale", torch.zeros(1)), r"have \['more.scale'\] besides"),
        (_set("sender_mean", torch.zeros(3)), r"'sender_mean' of shape \[3\], expected \[256\]"),
        (_set("sender_mean", torch.zeros(1, 256)), r"of shape \[1, 256\]"),
        (_set("leave.bias", torch.zeros(())), r"'leave.bias' of shape \[\], expected \[192\]"),
        (_poked("sender_mean", float("nan")), "'sender_mean' is .* not finite"),
        (_poked("receiver_scale", float("inf")), "'receiver_scale' is .* not finite"),
        (_set("sender_mean", torch.zeros(256, dtype=torch.int32)), "'sender_mean' is torch.int32"),
        (_poked(SCALED, float("nan")), "The scale of 'up'"),
        (_poked(SCALED, float("inf")), "'up' is .* not finite"),
        (_poked(SCALED, -1.0), "The scale of 'up'"),
        (_poked(SCALED, 0.0), "The scale of 'up'"),
        (_set(SCALED, torch.ones(192)), r"The scale of 'up', torch.float32 \[192\], does not fit torch.int8"),
        (_set(SCALED, torch.ones(80, 1)), "The scale of 'up'"),
        (_set(SCALED, torch.ones(192, 1).half()), "The scale of 'up', torch.float16"),
        (_set("sender_mean.scale", torch.ones(256, 1)), "The scale of 'sender_mean'"),
        (_set("up", torch.zeros(192, 80)), "The scale of 'up', .* does not fit torch.float32"),
        (lambda found: found.pop(SCALED), "'up' is torch.int8, expected torch.float32"),
    ],
)
def test_weights_that_are_not_the_fusers_are_refused(kept: Path, change: Change, message: str) -> None:
    path = kept / WEIGHTS
    found_there = load_file(path)
    # Packed whatever its size, so that there is a scale to spoil.
    wide = found_there.pop("up").float()
    found_there |= {"up": wide.round().to(torch.int8), SCALED: torch.ones(192, 1)}
    save_file(found_there, path)
    load_fuser(str(kept))
    change(found_there)
    save_file(found_there, path)
    with pytest.raises(UsageError, match=message):
        load_fuser(str(kept))


@pytest.mark.parametrize("cut", [0, 3, 100, -1])
def test_damaged_weights_are_refused(kept: Path, cut: int) -> None:
    path = kept / WEIGHTS
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UsageError, match="is no sound safetensors file"):
        load_fuser(str(kept))
    path.write_bytes(b"\x80\x04N." * 100)  # A pickle is not opened.
    with pytest.raises(UsageError, match="is no sound safetensors file"):
        load_fuser(str(kept))


def test_a_folder_that_lacks_a_file_is_refused(kept: Path, tmp_path: Path, offline: Asked) -> None:
    (kept / WEIGHTS).unlink()
    with pytest.raises(StorageError, match=r"The weights .* cannot be read: No such file"):
        load_fuser(str(kept))
    (kept / CONFIG).unlink()
    for load in (load_fuser, Bottleneck.from_pretrained):
        with pytest.raises(StorageError, match=r"There is no fuser in .*config.json cannot be read \(No such file"):
            load(str(kept))
    assert offline == []  # What is a folder here is not asked for elsewhere.
    with pytest.raises(StorageError, match=r"There is no fuser 'nobody/nothing': .* \(no network\)\."):
        load_fuser("nobody/nothing")
    with pytest.raises(StorageError, match="There is no fuser"):
        Bottleneck.from_pretrained("nobody/nothing", revision="v1", local_files_only=True, strict=False)
    assert [options for _, options in offline] == [
        {"allow_patterns": [CONFIG, WEIGHTS]},
        {"allow_patterns": [CONFIG, WEIGHTS], "revision": "v1", "local_files_only": True},
    ]


def test_a_name_that_is_no_repository_either_is_refused() -> None:
    with pytest.raises(StorageError, match="There is no fuser '/no/such/folder'"):
        load_fuser("/no/such/folder")
