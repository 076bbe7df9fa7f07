"""A fuser comes back from its folder as it was, within what int8 costs; whatever is not sound is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from unspoken.errors import IncompatibleCache, StorageError, UsageError
from unspoken.fusers import folder, found, load_fuser
from unspoken.fusers.bottleneck import Bottleneck
from unspoken.fusers.folder import CONFIG, PACKED_FROM, SCALE, WEIGHTS, described, fill, packed, unpacked, write

Make = Callable[..., Bottleneck]
Change = Callable[[dict[str, Tensor]], None]


def rows_of(fuser: Bottleneck, columns: int = 30) -> Tensor:
    """Columns of the sender."""
    return torch.randn(columns, fuser.pair.sender.width, generator=torch.Generator().manual_seed(3))


def test_every_number_comes_back_within_half_a_step(drawn_bottleneck: Make, kept: Path) -> None:
    before, after = drawn_bottleneck().state_dict(), Bottleneck.from_pretrained(kept).state_dict()
    assert before.keys() == after.keys()
    large = [name for name, tensor in before.items() if tensor.dim() == 2 and tensor.numel() >= PACKED_FROM]
    assert large == ["down", "enter.weight", "leave.weight"]
    for name, tensor in before.items():
        error = (after[name] - tensor).abs()
        if name in large:
            step = tensor.abs().amax(dim=1, keepdim=True) / 127
            assert bool((error <= step / 2 * (1 + 1e-5)).all())
            assert float(error.max()) > 0
        else:
            assert torch.equal(after[name], tensor)
        assert after[name].dtype == torch.float32


def test_the_large_matrices_are_int8_on_disk(kept: Path) -> None:
    on_disk = load_file(kept / WEIGHTS)
    scaled = {name.removesuffix(SCALE) for name in on_disk if name.endswith(SCALE)}
    assert scaled
    for name, tensor in on_disk.items():
        assert tensor.dtype == (torch.int8 if name in scaled else torch.float32)
    assert (kept / WEIGHTS).stat().st_size < 1.2 * sum(tensor.nbytes for tensor in on_disk.values())


def test_outputs_stay_within_what_the_steps_allow(drawn_bottleneck: Make, tmp_path: Path) -> None:
    fuser = drawn_bottleneck(rank=130, width=0)
    fuser.save_pretrained(tmp_path)
    rows = rows_of(fuser)
    x = ((rows - fuser.sender_mean) / fuser.sender_scale).abs()
    # |U'D'x - UDx| <= |U'-U| |D'x| + |U| |D'-D| |x|, each matrix off by half a step of its row at most.
    off = {name: getattr(fuser, name).abs().amax(dim=1, keepdim=True) / 254 for name in ("down", "up")}
    inner_off = x.sum(1, keepdim=True) * off["down"].T
    inner = (x @ fuser.down.abs().T) + inner_off
    bound = (inner.sum(1, keepdim=True) * off["up"].T + inner_off @ fuser.up.abs().T) * fuser.receiver_scale
    error = (Bottleneck.from_pretrained(tmp_path)(rows) - fuser(rows)).abs()
    assert bool((error <= bound).all())
    assert float(error.max()) > 0
    assert float(error.norm() / (fuser(rows) - fuser.receiver_mean).norm()) < 0.02


def test_saved_again_it_is_the_very_same(kept: Path, tmp_path: Path) -> None:
    first = Bottleneck.from_pretrained(kept)
    first.save_pretrained(tmp_path / "again")
    second = Bottleneck.from_pretrained(tmp_path / "again")
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert torch.equal(first(rows_of(first)), second(rows_of(second)))
    for name in (CONFIG, WEIGHTS):
        assert (kept / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@settings(max_examples=30)
@given(
    st.lists(st.floats(-(2.0**64), 2.0**64, width=32), min_size=2, max_size=8),
    st.sampled_from([1e-30, 1e-12, 1e-3, 1.0]),
)
def test_packing_what_was_unpacked_changes_nothing(numbers: list[float], size: float) -> None:
    wide = torch.tensor(numbers).repeat(PACKED_FROM // 2, 1) * size
    first = packed("m", wide)
    assert first["m"].dtype == torch.int8
    back = unpacked("m", first["m"], first["m" + SCALE])
    assert bool(((back - wide).abs() <= first["m" + SCALE] / 2 * (1 + 1e-5)).all())
    assert torch.equal(unpacked("m", *packed("m", back).values()), back)


def test_a_large_stack_of_matrices_is_kept_as_float16_if_its_numbers_fit() -> None:
    stack = torch.full((2, PACKED_FROM // 4, 2), 0.1)
    (kept,) = packed("m", stack).values()
    assert torch.equal(kept, stack.half())
    assert packed("m", stack[:, :8])["m"].dtype == torch.float32  # Small.
    (wide,) = packed("m", stack * 1e6).values()
    assert torch.equal(wide, stack * 1e6)


@pytest.mark.parametrize("tensor", [torch.zeros(3, 4), torch.zeros(PACKED_FROM), torch.zeros(200, 200).long()])
def test_small_flat_and_whole_numbers_are_kept_as_they_are(tensor: Tensor) -> None:
    assert list(packed("m", tensor)) == ["m"]
    assert packed("m", tensor)["m"].dtype == tensor.dtype


def test_it_is_loaded_by_name_folder_and_class_in_silence(
    drawn_bottleneck: Make,
    kept: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(kept.parent)
    (kept.parent / "models").mkdir()
    kept.rename(kept.parent / "models" / "mine")
    rows = rows_of(drawn_bottleneck())
    made = [
        load_fuser("mine"),
        load_fuser("models/mine"),
        load_fuser(str(kept.parent / "models" / "mine")),
        Bottleneck.from_pretrained("models/mine"),
        Bottleneck.from_pretrained(Path("models/mine")),
    ]
    for each in made:
        assert isinstance(each, Bottleneck)
        assert not each.training
        assert torch.equal(each(rows), Bottleneck.from_pretrained("models/mine")(rows))
    said = capfd.readouterr()
    assert (said.out, said.err, caplog.text) == ("", "", "")


def test_the_config_says_what_it_is_built_from(drawn_bottleneck: Make, kept: Path) -> None:
    config = json.loads((kept / CONFIG).read_bytes())
    assert {key: config[key] for key in ("kind", "rank", "width", "blocks")} == {
        "kind": "bottleneck", "rank": 80, "width": 96, "blocks": 2,
    }  # fmt: skip
    assert config["pair"]["sender"]["name"] == "reader"
    assert config["pair"]["receiver"] == {
        "name": "answerer", "weights": "w2", "architecture": "a2", "tokenizer": "t2", "layers": 3, "kv_heads": 1,
        "head_dim": 32,
    }  # fmt: skip
    assert sorted(each.name for each in kept.iterdir()) == ["README.md", CONFIG, WEIGHTS]
    assert Bottleneck.from_pretrained(kept).pair == drawn_bottleneck().pair


def test_loading_draws_no_number_of_somebody_elses(kept: Path) -> None:
    before = torch.random.get_rng_state()
    load_fuser(str(kept))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_the_hub_has_is_loaded(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repository, **_: str(kept))
    assert found("somebody/fuser") == kept
    assert isinstance(load_fuser("somebody/fuser"), Bottleneck)
    assert isinstance(Bottleneck.from_pretrained("somebody/fuser"), Bottleneck)


def test_a_fuser_of_its_own_name_comes_before_a_plain_folder(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(kept.parent)
    (kept.parent / "mine").mkdir()
    (kept.parent / "models").mkdir()
    kept.rename(kept.parent / "models" / "mine")
    assert found("mine") == Path("models/mine")


def test_another_pair_is_refused_by_what_is_loaded(kept: Path) -> None:
    from unspoken.engines.fake import FakeEngine

    with pytest.raises(IncompatibleCache, match="The fuser is for 'reader' to 'answerer'"):
        load_fuser(str(kept)).pair.require(FakeEngine().spec, FakeEngine().spec)


@pytest.mark.parametrize("at", [WEIGHTS, CONFIG])
def test_a_failed_write_leaves_the_old_fuser(
    drawn_bottleneck: Make, kept: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    old = {name: (kept / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    whole = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.name.startswith(at):
            whole(path, data[:10])
            raise OSError(28, "No space left on device")
        return whole(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match=r"cannot be written .*No space left"):
        write(drawn_bottleneck(seed=1), {"kind": "bottleneck"}, kept)
    assert {name: (kept / name).read_bytes() for name in old} == old
    assert sorted(each.name for each in kept.iterdir()) == ["README.md", CONFIG, WEIGHTS]


def test_killed_between_two_files_a_folder_holds_no_fuser(
    drawn_bottleneck: Make, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = Path.replace

    def killed(path: Path, target: Path) -> Path:
        if target.name == CONFIG:
            raise KeyboardInterrupt
        return moved(path, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        drawn_bottleneck(seed=1).save_pretrained(kept)
    monkeypatch.undo()
    # New weights never stand beside an old configuration.
    with pytest.raises(StorageError, match="There is no fuser in"):
        load_fuser(str(kept))


def test_where_nothing_can_be_written_is_told(drawn_bottleneck: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StorageError, match="The fuser cannot be written to"):
            drawn_bottleneck().save_pretrained(target)
        with pytest.raises(StorageError, match="The fuser cannot be written to"):
            write(drawn_bottleneck(), {}, target)


def test_filling_a_fuser_that_is_there_is_as_strict(drawn_bottleneck: Make, kept: Path) -> None:
    fuser = drawn_bottleneck(seed=5)
    fill(fuser, kept)
    assert torch.equal(fuser.down, Bottleneck.from_pretrained(kept).down)
    with pytest.raises(UsageError, match="expected"):
        fill(drawn_bottleneck(rank=81), kept)


def test_what_a_fuser_is_is_described(drawn_bottleneck: Make, kept: Path) -> None:
    fuser = drawn_bottleneck()
    told = described(str(kept))
    assert json.loads(json.dumps(told)) == told
    sender, receiver, inner = 2 * 4 * 2 * 16, 2 * 3 * 1 * 32, 96
    buffers = 2 * (sender + receiver) + 80 * (sender + receiver)
    network = (sender + 1) * inner + 2 * (inner + 1) * inner + (inner + 1) * receiver
    assert told == {
        "kind": "bottleneck",
        "sender": "reader",
        "receiver": "answerer",
        "numbers": buffers + network,
        "bytes_on_disk": (kept / CONFIG).stat().st_size + (kept / WEIGHTS).stat().st_size,
        "message_numbers_per_column": 80 + 96,
        "bytes_per_column": 2 * (80 + 96),
        "settings": {"rank": 80, "width": 96, "blocks": 2},
        "fingerprints": {
            "sender": {"weights": "w1", "architecture": "a1", "tokenizer": "t1"},
            "receiver": {"weights": "w2", "architecture": "a2", "tokenizer": "t2"},
        },
    }
    assert told["numbers"] == sum(tensor.numel() for tensor in fuser.state_dict().values())
    (kept / WEIGHTS).unlink()
    with pytest.raises(StorageError, match="The weights"):
        described(str(kept))


def test_an_enricher_is_given_the_senders_columns(
    drawn_bottleneck: Make, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Adding(Bottleneck):
        kind = "adding"

        def enrich(self, rows: Tensor, own: object) -> list[object]:
            return []

    monkeypatch.setattr(folder, "read_config", lambda path: {"kind": "adding", "pair": {}, "depth": 3})
    monkeypatch.setattr("unspoken.fusers.load_fuser", lambda name: Adding(drawn_bottleneck()._config["pair"]))
    told = described(str(kept))
    assert (told["message_numbers_per_column"], told["settings"]) == (256, {"depth": 3})
