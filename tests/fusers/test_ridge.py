"""The closed-form fuser does what its maps do, sends each layer once, and comes back from its folder as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from unspoken.errors import UsageError
from unspoken.fusers import load_fuser
from unspoken.fusers.folder import CONFIG, WEIGHTS
from unspoken.fusers.pair import Pair, Side
from unspoken.fusers.protocol import Translator
from unspoken.fusers.ridge import Ridge
from unspoken.fusers.ridge_fit import LayerMap

SENDER = Side("sender", "w1", "a1", "t1", layers=4, kv_heads=2, head_dim=4)
RECEIVER = Side("receiver", "w2", "a2", "t2", layers=3, kv_heads=1, head_dim=8)
PAIR = Pair(SENDER, RECEIVER)
SOURCES = ((0,), (3, 0), (3,))


def drawn(seed: int, *shape: int) -> Tensor:
    """Random numbers of one seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def maps(sources: tuple[tuple[int, ...], ...] = SOURCES) -> list[LayerMap]:
    """A map for each layer; the moments are those of sender layers, whichever map asks for them."""
    mean, scale = 100 * drawn(1, 4, 16), 0.1 + drawn(2, 4, 16).abs()
    return [
        LayerMap(
            each,
            mean[list(each)].flatten(),
            scale[list(each)].flatten(),
            drawn(3 + layer, 16),
            0.1 + drawn(13 + layer, 16).abs(),
            drawn(23 + layer, 16, 16 * len(each)),
        )
        for layer, each in enumerate(sources)
    ]


def sent(columns: int = 9) -> Tensor:
    """Columns of the sender whose numbers lie near the maps' means."""
    return 100 * drawn(1, 64) + drawn(5, columns, 64)


def test_each_layer_is_its_map_of_its_sources() -> None:
    rows, fuser = sent(), Ridge.of(PAIR, maps())
    made = fuser(rows)
    assert made.shape == (9, RECEIVER.width)
    for layer, each in enumerate(maps()):
        taken = torch.cat([rows[:, 16 * source : 16 * source + 16] for source in each.sources], dim=1)
        expected = ((taken - each.inputs_mean) / each.inputs_scale) @ each.matrix.T * each.targets_scale
        assert torch.allclose(made[:, 16 * layer : 16 * layer + 16], expected + each.targets_mean, atol=1e-3)


def test_each_chosen_layer_travels_once_and_is_standardised() -> None:
    rows, fuser = sent(), Ridge.of(PAIR, maps())
    message = fuser.encode(rows)
    # Layers 0 and 3 are asked for, by two maps each; 1 and 2 by none.
    mean, scale = 100 * drawn(1, 4, 16)[[0, 3]], 0.1 + drawn(2, 4, 16).abs()[[0, 3]]
    assert torch.allclose(message, (rows[:, [*range(16), *range(48, 64)]] - mean.flatten()) / scale.flatten())
    assert torch.equal(fuser.decode(message), fuser(rows))


def test_a_column_far_from_zero_survives_bfloat16() -> None:
    rows, fuser = sent(), Ridge.of(PAIR, maps())
    exact, coarse = fuser(rows), fuser.decode(fuser.encode(rows).to(torch.bfloat16).to(torch.float32))
    assert float((coarse - exact).norm() / (exact - fuser.receiver_mean).norm()) < 0.01


def test_it_is_a_translator_of_so_many_numbers() -> None:
    fuser = Ridge.of(PAIR, maps())
    assert isinstance(fuser, Translator)
    assert (fuser.kind, fuser.pair, fuser.sources) == ("ridge", PAIR, SOURCES)
    kept = {name: tensor.numel() for name, tensor in fuser.state_dict().items()}
    assert sum(count for name, count in kept.items() if name.startswith("map_")) == 16 * 16 * 4
    assert sum(kept.values()) == 16 * 16 * 4 + 2 * 32 + 2 * 48
    assert not list(fuser.parameters())


def test_it_comes_back_from_its_folder(tmp_path: Path) -> None:
    fuser = Ridge.of(PAIR, maps())
    fuser.save_pretrained(tmp_path)
    loaded = load_fuser(str(tmp_path))
    assert isinstance(loaded, Ridge)
    assert (loaded.pair, loaded.sources) == (PAIR, SOURCES)
    assert torch.equal(loaded(sent()), fuser(sent()))
    assert json.loads((tmp_path / CONFIG).read_bytes())["sources"] == [list(each) for each in SOURCES]


def spoilt(folder: Path, change: Any) -> Path:
    """A fuser's folder, its weights changed."""
    Ridge.of(PAIR, maps()).save_pretrained(folder)
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    return folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: found.pop("map_1"), r"lack \['map_1'\]"),
        (lambda found: found.update(map_3=torch.zeros(2, 2)), r"have \['map_3'\] besides"),
        (lambda found: found.update(map_1=found["map_1"][..., :16].contiguous()), r"'map_1' of shape \[2, 8, 16\]"),
        (lambda found: found["sender_mean"].fill_(float("nan")), "'sender_mean'.* finite"),
    ],
)
def test_a_folder_that_does_not_hold_it_whole_is_refused(tmp_path: Path, change: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Ridge.from_pretrained(spoilt(tmp_path, change))


def test_sources_that_the_weights_are_not_for_are_refused(tmp_path: Path) -> None:
    Ridge.of(PAIR, maps()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_bytes())
    (tmp_path / CONFIG).write_text(json.dumps(config | {"sources": [[0], [3], [3]]}))
    with pytest.raises(UsageError, match="'map_1' of shape"):
        load_fuser(str(tmp_path))


@pytest.mark.parametrize("sources", [[[0], [1]], [[0], [], [1]], [[0], [1, 1], [2]], [[0], [4], [2]], [[0], [-1], [2]]])
def test_sources_that_cannot_be_are_refused(sources: list[list[int]]) -> None:
    with pytest.raises(UsageError, match="the receiver has 3 layers and the sender 4"):
        Ridge(msgspec.to_builtins(PAIR), sources)
