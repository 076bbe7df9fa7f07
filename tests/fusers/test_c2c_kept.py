"""C2C's fusers of a pair are single fusers on the sender's turned keys, change nothing while closed, and are kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from unspoken.cache import KVCache, KVLayer
from unspoken.errors import IncompatibleCache, UsageError
from unspoken.fusers import load_fuser
from unspoken.fusers.c2c import C2CFuser
from unspoken.fusers.c2c_kept import C2C
from unspoken.fusers.folder import CONFIG, SCALE, WEIGHTS, described
from unspoken.fusers.pair import Pair, Side
from unspoken.fusers.protocol import Enricher, Translator
from unspoken.manifest import Step
from unspoken.spec import ModelSpec, RopeSpec
from unspoken.transforms.rope import RemoveRope

SENDER = Side("reader", "w1", "a1", "t1", layers=4, kv_heads=2, head_dim=6)
RECEIVER = Side("answerer", "w2", "a2", "t2", layers=3, kv_heads=1, head_dim=8)
PAIR = Pair(SENDER, RECEIVER)
ROPE = RopeSpec("default", "half", (1.0, 0.25, 0.0625))
OWN_ROPE = RopeSpec("default", "half", (1.0, 0.5, 0.25, 0.125))
SPEC = ModelSpec("answerer", "llama", 3, 1, 8, 300, 512, OWN_ROPE, "w2", "a2", "t2", "c2")
COLUMNS = 5
POSITIONS = torch.tensor([7, 8, 11, 300, 301], dtype=torch.int32)
# By hand: of a receiver of three layers and a sender of four.
SOURCES = {"last-aligned": (1, 2, 3), "depth-normalised": (0, 1, 3)}


def drawn(seed: int, *shape: int) -> Tensor:
    """Random numbers of one seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain(pair: Pair = PAIR, rope: RopeSpec = ROPE, **settings: Any) -> C2C:
    """A fuser as it is first drawn; wide enough that some of its matrices are packed."""
    torch.manual_seed(0)
    return C2C(msgspec.to_builtins(pair), msgspec.to_builtins(rope), **{"width": 128} | settings)


def gated(fuser: C2C, logit: float) -> C2C:
    """A fuser in use, all of its gates at a logit."""
    with torch.no_grad():
        for name, parameter in fuser.named_parameters():
            if name.endswith("gate_logit"):
                parameter.fill_(logit)
    return fuser.eval()


def opened(**settings: Any) -> C2C:
    """A fuser in use, its gates open."""
    return gated(plain(**settings), 0.5)


def cache(dtype: torch.dtype = torch.float32, seed: int = 2, positions: Tensor = POSITIONS) -> KVCache:
    """The receiver's own columns."""
    numbers = drawn(seed, 3, 2, 1, len(positions), 8).to(dtype)
    return KVCache.build([KVLayer(at, keys, values, positions) for at, (keys, values) in enumerate(numbers)], SPEC)


ROWS = drawn(1, COLUMNS, SENDER.width)


def turned(keys: Tensor, pairing: str) -> Tensor:
    """Keys at their positions: each pair of coordinates, as a complex number, times e^(i p w)."""
    wide = keys.double()
    first, second = (wide[..., :3], wide[..., 3:]) if pairing == "half" else (wide[..., ::2], wide[..., 1::2])
    radians = torch.outer(POSITIONS.double(), torch.tensor(ROPE.inverse_frequencies, dtype=torch.float64))
    product = torch.complex(first, second) * torch.polar(torch.ones_like(radians), radians)
    if pairing == "half":
        return torch.cat((product.real, product.imag), dim=-1).float()
    return torch.view_as_real(product).flatten(-2).float()


def sent(rows: Tensor, pairing: str = "half") -> list[tuple[Tensor, Tensor]]:
    """Keys, turned, and values of each of the sender's layers, cut out of its rows one number after the other."""
    made = []
    for layer in range(SENDER.layers):
        halves = torch.zeros(2, SENDER.kv_heads, len(rows), SENDER.head_dim)
        for half in range(2):
            for head in range(SENDER.kv_heads):
                start = ((layer * 2 + half) * SENDER.kv_heads + head) * SENDER.head_dim
                halves[half, head] = rows[:, start : start + SENDER.head_dim]
        made.append((turned(halves[0], pairing), halves[1]))
    return made


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
@pytest.mark.parametrize("mapping", sorted(SOURCES))
def test_each_layer_is_one_fuser_of_the_senders_turned_layer(mapping: str, pairing: str) -> None:
    fuser = opened(mapping=mapping, rope=RopeSpec("default", pairing, ROPE.inverse_frequencies))  # type: ignore[arg-type]
    state, own, layers = fuser.state_dict(), cache(), sent(ROWS, pairing)
    for target, (keys, values, positions) in enumerate(fuser.enrich(ROWS, own)):
        single = C2CFuser(6, 8, 2, 1, 128, 128).eval()
        start = f"fusing.fusers.{target}."
        single.load_state_dict({n.removeprefix(start): each for n, each in state.items() if n.startswith(start)})
        source, mine = layers[SOURCES[mapping][target]], own.layers[target]
        expected = single((source[0][None], source[1][None]), (mine.keys[None], mine.values[None]))
        assert torch.allclose(keys, expected[0][0], atol=1e-5)
        assert torch.allclose(values, expected[1][0], atol=1e-5)
        assert torch.equal(positions, POSITIONS)
        # Which of the sender's layers it is, and that its keys are turned, makes a difference.
        other = layers[(SOURCES[mapping][target] + 1) % 4]
        assert not torch.allclose(
            keys, single((other[0][None], other[1][None]), (mine.keys[None], mine.values[None]))[0][0], atol=1e-3
        )


@pytest.mark.parametrize(
    ("mapping", "expected"), [("last-aligned", [0, 0, 0, 0, 1]), ("depth-normalised", [0, 0, 0, 1, 1])]
)
def test_a_deeper_receiver_hears_a_layer_more_than_once(mapping: str, expected: list[int]) -> None:
    pair = Pair(msgspec.structs.replace(SENDER, layers=2), msgspec.structs.replace(RECEIVER, layers=5))
    fuser = plain(pair, mapping=mapping, width=4)
    assert fuser.fusing.layers == {target: (source, target) for target, source in enumerate(expected)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("logit", [-1e4, 0.0])
def test_closed_gates_leave_every_bit(dtype: torch.dtype, logit: float) -> None:
    own = cache(dtype)
    for rows in (ROWS, 1e6 * ROWS):
        for (keys, values, positions), layer in zip(gated(plain(), logit).enrich(rows, own), own.layers, strict=True):
            assert torch.equal(keys, layer.keys)
            assert torch.equal(values, layer.values)
            assert torch.equal(positions, layer.positions)


def test_one_gate_opens_one_half_of_one_layer() -> None:
    fuser, own = gated(plain(), -1e4), cache()
    with torch.no_grad():
        fuser.get_parameter("fusing.fusers.1.value_gate_logit").fill_(1e-6)
    changed = [
        (not torch.equal(keys, layer.keys), not torch.equal(values, layer.values))
        for (keys, values, _), layer in zip(fuser.enrich(ROWS, own), own.layers, strict=True)
    ]
    assert changed == [(False, False), (False, True), (False, False)]


def test_another_senders_rows_make_other_columns() -> None:
    fuser, own = opened(), cache()
    made = [fuser.enrich(rows, own) for rows in (ROWS, ROWS.flip(0), torch.zeros_like(ROWS))]
    for at in range(1, 3):
        for one, other in zip(made[0], made[at], strict=True):
            assert not torch.allclose(one[0], other[0], atol=1e-3)
            assert not torch.allclose(one[1], other[1], atol=1e-3)
    # A column hears the sender's column beside it, and no other.
    changed = ROWS.clone()
    changed[3] += 1
    for one, other in zip(made[0], fuser.enrich(changed, own), strict=True):
        apart = (one[1] - other[1]).abs().amax(dim=(0, 2))
        assert (apart > 1e-4).tolist() == [False, False, False, True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_columns_come_back_in_the_receivers_dtype_at_its_positions(dtype: torch.dtype) -> None:
    fuser, own = opened(), cache(dtype)
    made = fuser.enrich(ROWS, own)
    exact = fuser(ROWS, POSITIONS, [(layer.keys.float(), layer.values.float()) for layer in own.layers])
    fused = own.rebuilt(Step("fuse"), lambda layer: made[layer.index])
    assert (fused.manifest.dtype, fused.positions.tolist()) == (own.manifest.dtype, POSITIONS.tolist())
    for layer, (keys, values) in zip(fused.layers, exact, strict=True):
        assert (layer.keys.dtype, layer.values.dtype) == (dtype, dtype)
        assert torch.equal(layer.keys, keys.to(dtype))  # Rounded once, at the end.
        assert torch.equal(layer.values, values.to(dtype))


def test_it_is_an_enricher() -> None:
    fuser = plain()
    assert isinstance(fuser, Enricher)
    assert not isinstance(fuser, Translator)
    assert (fuser.kind, fuser.pair) == ("c2c", PAIR)


def test_the_temperature_reaches_every_gate() -> None:
    fuser = plain(anneal_steps=8)

    def held() -> list[float]:
        return [each.item() for name, each in fuser.named_buffers() if name.endswith("gate_temperature")]

    assert held() == [1.0] * 3
    # From 1 to 0.001 geometrically: half-way it is the root of both.
    for step, expected in ((4, 0.001**0.5), (8, 0.001), (9, 0.001), (0, 1.0)):
        fuser.update_temperature(step)
        assert held() == pytest.approx([expected] * 3, rel=1e-6)
    with pytest.raises(UsageError, match="There is no step -1"):
        fuser.update_temperature(-1)


def test_gradients_reach_the_fusers_and_nothing_else() -> None:
    fuser, rows, own = plain(dropout=0.1).train(), ROWS.clone(), cache()
    torch.manual_seed(0)
    made = fuser(rows, POSITIONS, [(layer.keys, layer.values) for layer in own.layers])
    sum(keys.square().mean() + values.square().mean() for keys, values in made).backward()
    for name, parameter in fuser.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()), name
    assert not rows.requires_grad
    assert not any(each.requires_grad for layer in own.layers for each in (layer.keys, layer.values))
    assert not any(each.requires_grad for each in fuser.buffers())


def test_noise_and_dropout_are_training_alone() -> None:
    fuser, own = opened(dropout=0.5), [(layer.keys, layer.values) for layer in cache().layers]

    def made(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return fuser(ROWS, POSITIONS, own)[0][1]

    assert torch.equal(made(0), made(1))
    fuser.train()
    assert not torch.allclose(made(0), made(1), atol=1e-3)
    assert torch.equal(made(0), made(0))


def rounded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Large matrices in steps of 1/127 of each row's largest number, one row after the other."""
    made = {}
    for name, tensor in state.items():
        made[name] = tensor.clone()
        if tensor.dim() == 2 and tensor.numel() >= 128 * 128:
            for row in made[name]:
                step = row.abs().max() / 127
                row.copy_(torch.round(row / step) * step)
    return made


def moved(made: Sequence[tuple[Tensor, ...]], own: KVCache) -> Tensor:
    """What was added to the receiver's columns."""
    parts = [
        torch.stack((each[0] - layer.keys, each[1] - layer.values))
        for each, layer in zip(made, own.layers, strict=True)
    ]
    return torch.stack(parts)


@torch.inference_mode()
def test_it_comes_back_from_its_folder_within_what_int8_costs(tmp_path: Path) -> None:
    fuser, coarse, own = opened(), opened(), cache()
    fuser.update_temperature(5)
    fuser.save_pretrained(tmp_path)
    loaded = load_fuser(str(tmp_path))
    assert isinstance(loaded, C2C)
    coarse.load_state_dict(rounded(fuser.state_dict()))
    before, after, expected = (moved(each.enrich(ROWS, own), own) for each in (fuser, loaded, coarse))
    assert torch.allclose(after, expected, atol=1e-6)
    assert 0 < float((after - before).norm() / before.norm()) < 0.02


def test_saved_again_it_is_the_very_same(tmp_path: Path) -> None:
    own = cache()
    opened(mapping="depth-normalised", dropout=0.25, anneal_steps=9).save_pretrained(tmp_path / "one")
    first = C2C.from_pretrained(tmp_path / "one")
    first.save_pretrained(tmp_path / "two")
    second = C2C.from_pretrained(tmp_path / "two")
    for one, other in zip(first.enrich(ROWS, own), second.enrich(ROWS, own), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    for name in (CONFIG, WEIGHTS):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert second.fusing.layers == {0: (0, 0), 1: (1, 1), 2: (3, 2)}
    assert {each.p for each in second.modules() if isinstance(each, torch.nn.Dropout)} == {0.25}
    second.update_temperature(9)
    assert second.get_buffer("fusing.fusers.2.gate_temperature").item() == pytest.approx(0.001)


def test_its_folder_says_what_it_is(tmp_path: Path) -> None:
    plain().save_pretrained(tmp_path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["README.md", CONFIG, WEIGHTS]
    assert json.loads((tmp_path / CONFIG).read_bytes()) == {
        "kind": "c2c",
        "pair": json.loads(msgspec.json.encode(PAIR)),
        "sender_rope": {
            "kind": "default", "pairing": "half", "inverse_frequencies": [1.0, 0.25, 0.0625], "attention_scaling": 1.0,
        },
        "mapping": "last-aligned", "width": 128, "dropout": 0.0, "anneal_steps": 1929,
    }  # fmt: skip
    scaled = {name.removesuffix(SCALE) for name in load_file(tmp_path / WEIGHTS) if name.endswith(SCALE)}
    # Between hidden columns, 128 x 128; what leads in and out is smaller.
    blocks = [f"{kind}_{stage}.blocks.0.{w}.weight" for kind in ("key", "value")
              for stage in ("mlp1", "scalar_mlp2", "proj_mlp2") for w in ("w1", "w2")]  # fmt: skip
    assert scaled == {f"fusing.fusers.{layer}.{name}" for layer in range(3) for name in blocks}
    told = described(str(tmp_path))
    assert (told["kind"], told["sender"], told["receiver"]) == ("c2c", "reader", "answerer")
    # What is sent to an enricher is the sender's columns: keys and values of 4 layers of 2 heads of 6 numbers.
    assert (told["message_numbers_per_column"], told["bytes_per_column"]) == (96, 192)
    width, inside, out = 128, 2 * 6 + 8, 8
    block = width + 2 * width * width
    half = 1 + (inside + 1) * width + 3 * block + (width + 1) + (width + 1) * out
    assert told["numbers"] == 3 * (2 * half + 1)  # And a temperature.


@pytest.mark.parametrize(
    "settings",
    [{"mapping": "first-aligned"}, {"mapping": ""}, {"width": 0}, {"width": -3}, {"dropout": 1.0}, {"anneal_steps": 0}],
)
def test_settings_that_make_no_fuser_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"cannot be|dropout is|anneal_steps is"):
        plain(**settings)


@pytest.mark.parametrize(
    ("pair", "rope", "said"),
    [
        (PAIR, OWN_ROPE, "of 4 frequencies, .* keys of 6"),
        (PAIR, RopeSpec("default", "half", ()), "of 0 frequencies"),
        (PAIR, RopeSpec("default", "half", (1.0, 0.5, float("nan"))), "frequencies, each of "),
        (PAIR, RopeSpec("default", "half", (1.0, 0.5, 1e300)), "frequencies, each of "),
        (Pair(msgspec.structs.replace(SENDER, layers=1025), RECEIVER), ROPE, "models of 1025 and 3 layers"),
        (Pair(SENDER, msgspec.structs.replace(RECEIVER, layers=1 << 20)), ROPE, "models of 4 and 1048576 layers"),
    ],
)
def test_models_that_it_cannot_be_for_are_refused(pair: Pair, rope: RopeSpec, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        plain(pair, rope)


@torch.inference_mode()
def test_columns_that_are_not_the_pairs_are_refused() -> None:
    fuser, own = opened(), cache()
    layers = [(layer.keys, layer.values) for layer in own.layers]
    with pytest.raises(IncompatibleCache, match="Columns of 95 numbers are none of 'reader'"):
        fuser.enrich(ROWS[:, 1:], own)
    for rows in (ROWS[:4], ROWS[:1]):  # One row would fit any number of positions.
        with pytest.raises(UsageError, match=f"{len(rows)} columns of the sender came for 5 with RoPE applied"):
            fuser.enrich(rows, own)
    for some in (layers[:2], [*layers, layers[0]]):
        with pytest.raises(UsageError, match=f"There are {len(some)} layers of the receiver, expected 3"):
            fuser(ROWS, POSITIONS, some)
    for wrong in (torch.zeros(2, 5, 8), torch.zeros(1, 5, 6), torch.zeros(1, 4, 8)):
        with pytest.raises(UsageError, match=r"expected twice \[batch, 2, seq, 6\] and twice \[batch, 1, seq, 8\]"):
            fuser(ROWS, POSITIONS, [(wrong, wrong)] * 3)


def test_columns_that_do_not_stand_at_one_position_each_are_refused() -> None:
    fuser, own = opened(), cache()
    with pytest.raises(UsageError, match="came for 5 with RoPE removed, the same in all layers"):
        fuser.enrich(ROWS, RemoveRope()(own))
    apart = own.rebuilt(Step("x"), lambda layer: (layer.keys, layer.values, layer.positions + layer.index))
    with pytest.raises(UsageError, match="with RoPE applied, not the same in all layers"):
        fuser.enrich(ROWS, apart)
