"""Every kind of fuser is kept alike: by one base, as strictly, and never taken for another kind."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unspoken.errors import StorageError, UsageError
from unspoken.fusers import FUSERS, folder, load_fuser
from unspoken.fusers.bottleneck import Bottleneck
from unspoken.fusers.c2c_kept import C2C
from unspoken.fusers.folder import CONFIG, WEIGHTS
from unspoken.fusers.kept import Kept
from unspoken.fusers.pair import Pair, Side
from unspoken.fusers.ridge import Ridge

PAIR = msgspec.to_builtins(Pair(Side("reader", "w1", "a1", "t1", 2, 1, 4), Side("answerer", "w2", "a2", "t2", 2, 2, 6)))
ROPE = {"kind": "default", "pairing": "half", "inverse_frequencies": [1.0, 0.1]}
MADE: dict[str, Callable[[], Any]] = {
    "bottleneck": lambda: Bottleneck(PAIR, rank=3, width=5),
    "ridge": lambda: Ridge(PAIR, [[0], [1, 0]]),
    "c2c": lambda: C2C(PAIR, ROPE, width=128),
}
# Of each kind a vector, and something larger.
NAMED = {
    "bottleneck": ("sender_mean", "enter.weight"),
    "ridge": ("sender_mean", "map_1"),
    "c2c": ("fusing.fusers.1.key_in.bias", "fusing.fusers.0.value_mlp1.blocks.0.w1.weight"),
}
TAGS = {"bottleneck": set(), "ridge": set(), "c2c": {"c2c"}}


def made(kind: str, seed: int = 0) -> Any:
    """A fuser with random numbers in every place."""
    fuser, generator = MADE[kind](), torch.Generator().manual_seed(seed)
    for tensor in fuser.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
    return fuser


@pytest.fixture(params=sorted(MADE))
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind there is."""
    return str(request.param)


@pytest.fixture
def kept(kind: str, tmp_path: Path) -> Path:
    """A sound folder of the kind."""
    made(kind).save_pretrained(tmp_path / "fuser")
    return tmp_path / "fuser"


def test_every_kind_is_tried() -> None:
    assert set(MADE) == set(FUSERS.names())


def test_it_comes_back_as_its_own_class(kind: str, kept: Path) -> None:
    fuser, loaded = made(kind), type(made(kind)).from_pretrained(kept)
    assert type(loaded) is type(load_fuser(str(kept))) is type(fuser)
    assert loaded.state_dict().keys() == fuser.state_dict().keys()
    for name, tensor in fuser.state_dict().items():
        # Numbers lie between 0.1 and 1.1: half a step of 127 in those that are packed.
        assert torch.allclose(loaded.state_dict()[name], tensor, rtol=0, atol=1.1 / 254 * (1 + 1e-4))
    assert (loaded.pair, loaded.kind, loaded.training) == (fuser.pair, kind, False)


def test_another_kind_is_refused(kind: str, kept: Path) -> None:
    for other in sorted(set(MADE) - {kind}):
        with pytest.raises(UsageError, match=f"holds a fuser of another kind than '{other}'"):
            type(made(other)).from_pretrained(kept)


def test_another_kinds_config_beside_its_weights_is_refused(kind: str, kept: Path, tmp_path: Path) -> None:
    for other in sorted(set(MADE) - {kind}):
        made(other).save_pretrained(tmp_path / other)
        (kept / CONFIG).write_bytes((tmp_path / other / CONFIG).read_bytes())
        with pytest.raises(UsageError, match=r"The weights .* lack "):
            load_fuser(str(kept))
    for text, said in ((b"{", "is not JSON"), (b"[]", "says no kind"), (b'{"model_type": "llama"}', "says no kind")):
        (kept / CONFIG).write_bytes(text)
        with pytest.raises(UsageError, match=said):
            type(made(kind)).from_pretrained(kept)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found, vector, matrix: found.pop(vector), r"lack \['{vector}'\] and have nothing besides"),
        (lambda found, vector, matrix: found.pop(matrix), r"lack \['{matrix}'\]"),
        (lambda found, vector, matrix: found.update(more=torch.zeros(1)), r"have \['more'\] besides"),
        (lambda found, vector, matrix: found.update({vector: torch.zeros(1)}), r"'{vector}' of shape \[1\], expected"),
        (lambda found, vector, matrix: found.update({matrix: found[matrix][None].clone()}), "'{matrix}' of shape"),
        (lambda found, vector, matrix: found[vector].fill_(float("nan")), "'{vector}' is .* not finite"),
        (lambda found, vector, matrix: found[vector].fill_(float("-inf")), "'{vector}' is .* not finite"),
        (lambda found, vector, matrix: found.update({vector: found[vector].long()}), "'{vector}' is torch.int64"),
        (lambda found, vector, matrix: found.update({vector + ".scale": torch.ones(1)}), "The scale of '{vector}'"),
    ],
)
def test_weights_that_are_not_its_own_are_refused(
    kind: str, kept: Path, change: Callable[[dict[str, Tensor], str, str], None], said: str
) -> None:
    vector, matrix = NAMED[kind]
    tensors = load_file(kept / WEIGHTS)
    change(tensors, vector, matrix)
    save_file(tensors, kept / WEIGHTS)
    for load in (load_fuser, type(made(kind)).from_pretrained):
        with pytest.raises(UsageError, match=said.format(vector=vector, matrix=matrix)):
            load(str(kept))


@pytest.mark.parametrize(
    "change",
    [
        {"pair": None},
        {"pair": {}},
        {"surprise": 1},
        {"kind": "c2d"},
        {"width": "128"},
        {"width": 1 << 40},
        {"sender_rope": {}},
        {"sender_rope": ROPE | {"inverse_frequencies": [1.0]}},
        {"sender_rope": ROPE | {"inverse_frequencies": [1.0, float("nan")]}},
        {"mapping": ["last-aligned"]},
        {"anneal_steps": "many"},
        {"anneal_steps": 1.5},
        {"dropout": None},
        {"pair": PAIR | {"receiver": PAIR["receiver"] | {"layers": 1 << 20}}},
        {"pair": PAIR | {"receiver": PAIR["receiver"] | {"layers": 3}}},
        {"pair": PAIR | {"sender": PAIR["sender"] | {"head_dim": 6}}},
    ],
)
def test_a_config_that_is_not_its_own_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    made("c2c").save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_bytes())
    (tmp_path / CONFIG).write_text(json.dumps(config | change))
    with pytest.raises(UsageError):
        load_fuser(str(tmp_path))


@pytest.mark.parametrize("killed_at", [WEIGHTS, CONFIG])
def test_killed_while_it_is_written_a_folder_holds_no_fuser(
    kind: str, kept: Path, monkeypatch: pytest.MonkeyPatch, killed_at: str
) -> None:
    moved = Path.replace

    def killed(path: Path, target: Path) -> Path:
        if target.name == killed_at:
            raise KeyboardInterrupt
        return moved(path, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        made(kind, seed=1).save_pretrained(kept)
    monkeypatch.undo()
    for load in (load_fuser, type(made(kind)).from_pretrained):
        with pytest.raises(StorageError, match="There is no fuser in"):
            load(str(kept))
    assert not list(kept.glob("*.part"))
    made(kind, seed=1).save_pretrained(kept)
    assert torch.equal(
        load_fuser(str(kept)).state_dict()[NAMED[kind][0]], made(kind, seed=1).state_dict()[NAMED[kind][0]]
    )


def test_where_nothing_can_be_written_is_told(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="The fuser cannot be written to"):
        made(kind).save_pretrained(tmp_path / "file" / "below")


def test_a_folder_without_weights_and_a_name_without_folder_are_refused(
    kind: str, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (kept / WEIGHTS).unlink()
    with pytest.raises(StorageError, match=r"The weights .* cannot be read"):
        type(made(kind)).from_pretrained(kept)
    asked: list[dict[str, Any]] = []

    def none(repository: str, **options: Any) -> str:
        asked.append(options)
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", none)
    with pytest.raises(StorageError, match=r"There is no fuser 'a/b': .*\(no network\)"):
        type(made(kind)).from_pretrained("a/b", revision="v1", map_location="cuda")
    assert asked == [{"allow_patterns": [CONFIG, WEIGHTS], "revision": "v1"}]


def test_the_card_is_the_packages(kind: str, kept: Path) -> None:
    from huggingface_hub import ModelCard

    data = ModelCard.load(kept / "README.md").data
    assert data.library_name == "unspoken"
    assert set(data.tags or []) == {"kv-cache", "fuser", "model_hub_mixin", "pytorch_model_hub_mixin"} | TAGS[kind]


def test_the_hubs_mixin_knows_the_arguments_of_each_kind(kind: str) -> None:
    fuser = made(kind)
    assert list(fuser._hub_mixin_init_parameters) == list(inspect.signature(type(fuser).__init__).parameters)
    assert isinstance(fuser, Kept)
    assert isinstance(fuser, nn.Module)
    for name in ("save_pretrained", "_save_pretrained", "from_pretrained"):
        assert name not in vars(type(fuser)), f"{kind} has a {name} of its own"


def test_pushed_to_the_hub_it_is_what_the_folder_holds(kind: str, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: dict[str, bytes] = {}

    class Hub:
        def __init__(self, **_: Any) -> None: ...

        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return type("Repo", (), {"repo_id": repo_id})

        def upload_folder(self, folder_path: Path, **_: Any) -> str:
            pushed.update({each.name: each.read_bytes() for each in Path(folder_path).iterdir()})
            return "there"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Hub)
    assert made(kind).push_to_hub("a/b") == "there"
    assert pushed.keys() == {"README.md", CONFIG, WEIGHTS}
    for name in (CONFIG, WEIGHTS):
        assert pushed[name] == (kept / name).read_bytes()
    assert folder.read_config(kept)["kind"] == kind
