"""The fuser is C2C's: values worked out by hand, and a second implementation from the formulae alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from unspoken.errors import UsageError
from unspoken.fusers.c2c import KV, C2CFuser, noisy_gate

SIZES: dict[str, Any] = {
    "source_dim": 8,
    "target_dim": 16,
    "source_num_heads": 2,
    "target_num_heads": 4,
    "hidden_dim": 32,
    "intermediate_dim": 48,
    "num_layers": 4,
    "dropout": 0.0,
}


def instance(**changes: Any) -> C2CFuser:
    """The test instance, its gates open."""
    torch.manual_seed(0)
    fuser = C2CFuser(**(SIZES | changes)).eval()
    with torch.no_grad():
        fuser.key_gate_logit.fill_(0.3)
        fuser.value_gate_logit.fill_(0.7)
    return fuser


def columns(batch: int = 2, seq: int = 5, seed: int = 1) -> tuple[KV, KV]:
    """A source and a target for it."""
    drawn = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, batch, 2, seq, 8, generator=drawn)
    to_keys, to_values = torch.randn(2, batch, 4, seq, 16, generator=drawn)
    return (keys, values), (to_keys, to_values)


def by_formulae(state: dict[str, Tensor], kind: str, source: Tensor, target: Tensor, gate: Tensor) -> Tensor:
    """One half of the fuser, column by column, from a state dict and nothing of the package."""

    def blocks(name: str, vector: Tensor) -> Tensor:
        at = 0
        while f"{kind}_{name}.blocks.{at}.w1.weight" in state:
            norm, up, down = (state[f"{kind}_{name}.blocks.{at}.{part}.weight"] for part in ("norm", "w1", "w2"))
            inner = up @ (norm * vector / (vector.square().mean() + 1e-6).sqrt())
            vector = vector + down @ (inner * (1 + torch.erf(inner / math.sqrt(2))) / 2)
            at += 1
        return vector

    def linear(name: str, vector: Tensor) -> Tensor:
        return state[f"{kind}_{name}.weight"] @ vector + state[f"{kind}_{name}.bias"]

    rows = []
    for row in range(target.shape[0]):
        fused = []
        for column in range(target.shape[2]):
            mine = target[row, :, column]
            hidden = blocks("mlp1", linear("in", torch.cat([source[row, :, column].flatten(), mine.flatten()])))
            weight = 1 / (1 + torch.exp(-linear("scalar_head", blocks("scalar_mlp2", hidden))))
            projected = linear("proj_out", blocks("proj_mlp2", hidden)).reshape(mine.shape)
            fused.append(mine + gate[row, :, column] * weight[:, None] * projected)
        rows.append(torch.stack(fused, 1))
    return torch.stack(rows)


def open_gate(target: Tensor) -> Tensor:
    return torch.ones(*target.shape[:3], 1)


def gumbel_gate(logit: Tensor, temperature: float, target: Tensor, drawn: torch.Generator) -> Tensor:
    noise = -torch.log(-torch.log(torch.rand(*target.shape[:3], 1, generator=drawn) + 1e-20) + 1e-20)
    return torch.sigmoid((logit + noise) / temperature)


def apart(found: KV, expected: KV) -> float:
    return max(float((a - b).detach().abs().max()) for a, b in zip(found, expected, strict=True))


def test_one_number_is_fused_as_by_hand() -> None:
    fuser = C2CFuser(1, 1, hidden_dim=1, intermediate_dim=1).eval()
    weights = {
        "in.weight": [[0.5, 0.25]],  # Source first: 2 / 2 + 4 / 4 = 2.
        "in.bias": [0.0],
        "mlp1.blocks.0.norm.weight": [1.0],  # The norm of one number is 1.
        "mlp1.blocks.0.w1.weight": [[1.0]],
        "mlp1.blocks.0.w2.weight": [[1.0]],  # 2 + GELU(1) = 2 + 0.8413447.
        "scalar_mlp2.blocks.0.norm.weight": [1.0],
        "scalar_mlp2.blocks.0.w1.weight": [[1.0]],
        "scalar_mlp2.blocks.0.w2.weight": [[-1.0]],  # 2.8413447 - 0.8413447 = 2.
        "scalar_head.weight": [[0.5]],
        "scalar_head.bias": [-1.0],  # sigmoid(0) = 0.5.
        "proj_mlp2.blocks.0.norm.weight": [1.0],
        "proj_mlp2.blocks.0.w1.weight": [[-1.0]],
        "proj_mlp2.blocks.0.w2.weight": [[1.0]],  # 2.8413447 + GELU(-1) = 2.8413447 - 0.1586553 = 2.6826895.
        "proj_out.weight": [[2.0]],
        "proj_out.bias": [0.5],  # 5.8653790.
    }
    state = {f"{kind}_{name}": torch.tensor(value) for name, value in weights.items() for kind in ("key", "value")}
    state |= {"value_proj_out.weight": torch.tensor([[-1.0]]), "value_proj_out.bias": torch.tensor([0.0])}
    state |= {f"{kind}_gate_logit": torch.tensor(1e-3) for kind in ("key", "value")}
    fuser.load_state_dict(state | {"gate_temperature": torch.tensor(1.0)})
    source, target = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 4.0)
    keys, values = fuser((source, source), (target, target))
    assert keys.item() == pytest.approx(4 + 0.5 * 5.8653790, abs=1e-5)
    assert values.item() == pytest.approx(4 - 0.5 * 2.6826895, abs=1e-5)


def test_evaluation_equals_the_formulae() -> None:
    fuser = instance()
    source, target = columns()
    expected = [
        by_formulae(fuser.state_dict(), kind, a, b, open_gate(b))
        for kind, a, b in zip(("key", "value"), source, target, strict=True)
    ]
    fused = fuser(source, target)
    assert apart(fused, (expected[0], expected[1])) <= 1e-6
    assert apart(fused, target) > 0.1


@pytest.mark.parametrize("source_of_noise", ["generator", "global"])
def test_training_and_its_gradients_equal_the_formulae_with_the_same_noise(source_of_noise: str) -> None:
    fuser = instance().train()
    fuser.update_temperature(500)
    source, target = columns()
    drawn, temperature = torch.Generator().manual_seed(7), 0.001 ** (500 / 1929)
    state = {name: tensor.clone().requires_grad_() for name, tensor in fuser.state_dict().items()}
    gates = [  # Keys' noise first.
        gumbel_gate(state[f"{kind}_gate_logit"], temperature, target[0], drawn) for kind in ("key", "value")
    ]
    keys = by_formulae(state, "key", source[0], target[0], gates[0])
    values = by_formulae(state, "value", source[1], target[1], gates[1])
    torch.manual_seed(7)
    given = torch.Generator().manual_seed(7) if source_of_noise == "generator" else None
    fused = fuser(source, target, given)
    assert apart(fused, (keys, values)) <= 1e-6
    for one, other in (fused, (keys, values)):
        (one.square().mean() + other.square().mean()).backward()
    for name, parameter in fuser.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, state[name].grad, atol=1e-6), name
    assert not any(tensor.requires_grad for tensor in (*source, *target, fuser.gate_temperature))


def test_the_generator_leaves_the_global_noise_alone() -> None:
    fuser = instance().train()
    before = torch.get_rng_state()
    fuser(*columns(), torch.Generator().manual_seed(0))
    assert torch.equal(before, torch.get_rng_state())


def test_the_noisy_gate_is_one_gumbel_variate_by_temperature() -> None:
    half, cold = torch.tensor(0.5), torch.tensor(1.0)
    # u = 1/e: G = 0. u = exp(-1/e): G = 1, and sigmoid(1 / 0.5) = 0.8807971.
    noise = torch.tensor([math.exp(-1), math.exp(-math.exp(-1))])
    assert noisy_gate(torch.tensor(0.0), half, noise).tolist() == pytest.approx([0.5, 0.8807971], abs=1e-6)
    assert noisy_gate(torch.tensor(0.0), cold, torch.tensor([0.0, 1.0])).isfinite().all()
    # Open, at a logit of 0, where G is above 0: at 1 - 1/e of all u.
    opened = noisy_gate(torch.tensor(0.0), cold, torch.linspace(0, 1, 10_001)[:-1]) > 0.5
    assert opened.float().mean().item() == pytest.approx(1 - math.exp(-1), abs=1e-3)


@pytest.mark.parametrize(
    ("step", "temperature"), [(0, 1.0), (500, 0.1668764), (1929, 0.001), (100_000, 0.001), (1, 0.9964254)]
)
def test_the_temperature_falls_geometrically(step: int, temperature: float) -> None:
    fuser = instance()
    fuser.update_temperature(step)
    assert fuser.state_dict()["gate_temperature"].item() == pytest.approx(temperature, abs=5e-8)


def test_a_closed_gate_is_exactly_the_identity() -> None:
    source, target = columns()
    fuser = C2CFuser(**SIZES).eval()
    assert [fuser.key_gate_logit.item(), fuser.value_gate_logit.item()] == [0.0, 0.0]
    target[0][0, 0, 0, 0] = -0.0
    with torch.no_grad():
        fuser.key_proj_out.bias.fill_(math.inf)
    keys, values = fuser(source, target)
    assert torch.equal(keys, target[0])
    assert torch.equal(values, target[1])
    assert math.copysign(1, keys[0, 0, 0, 0].item()) == -1
    with torch.no_grad():
        fuser.value_gate_logit.fill_(1e-30)
        fuser.key_gate_logit.fill_(-1e-30)
    keys, values = fuser(source, target)
    assert torch.equal(keys, target[0])
    assert not torch.equal(values, target[1])


class StaysOnTheDevice(TorchDispatchMode):
    """Fails where a tensor's number is fetched, for which a device would have to wait."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_no_number_is_fetched_from_the_device() -> None:
    fuser, (source, target) = instance(), columns()
    with StaysOnTheDevice():
        fuser(source, target)
        fuser.train()(source, target)
        fuser.update_temperature(5)
        with pytest.raises(AssertionError):
            source[0].sum().item()


def test_a_projection_of_zeros_adds_nothing() -> None:
    source, target = columns()
    fuser = instance(zero_init=True)
    assert apart(fuser(source, target), target) == 0
    assert apart(fuser.train()(source, target), target) == 0
    assert fuser.key_in.weight.abs().min() > 0


def test_dropout_belongs_to_training() -> None:
    source, target = columns()
    fuser, without = instance(dropout=0.5), instance()
    assert apart(fuser(source, target), without(source, target)) == 0
    noise = [torch.Generator().manual_seed(3) for _ in range(2)]
    assert apart(fuser.train()(source, target, noise[0]), without.train()(source, target, noise[1])) > 1e-3


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("inside", "outside"),
    [(torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)],
)
def test_the_targets_dtype_comes_out(inside: torch.dtype, outside: torch.dtype, training: bool) -> None:
    source, target = columns()
    exact = instance().train(training)(source, target, torch.Generator().manual_seed(0))
    cast = [(pair[0].to(outside), pair[1].to(outside)) for pair in (source, target)]
    fuser = instance().to(inside).train(training)
    fused = fuser(cast[0], cast[1], torch.Generator().manual_seed(0))
    assert [each.dtype for each in fused] == [outside, outside]
    assert apart((fused[0].float(), fused[1].float()), exact) < 0.05


def test_the_state_dict_is_the_published_one() -> None:
    state = C2CFuser(8, 16, 2, 4, hidden_dim=32, intermediate_dim=48).state_dict()
    stages = {
        "in.weight": [32, 80],
        "in.bias": [32],
        "mlp1.blocks.0.norm.weight": [32],
        "mlp1.blocks.0.w1.weight": [48, 32],
        "mlp1.blocks.0.w2.weight": [32, 48],
        "scalar_mlp2.blocks.0.norm.weight": [32],
        "scalar_mlp2.blocks.0.w1.weight": [32, 32],
        "scalar_mlp2.blocks.0.w2.weight": [32, 32],
        "scalar_head.weight": [4, 32],
        "scalar_head.bias": [4],
        "proj_mlp2.blocks.0.norm.weight": [32],
        "proj_mlp2.blocks.0.w1.weight": [48, 32],
        "proj_mlp2.blocks.0.w2.weight": [32, 48],
        "proj_out.weight": [64, 32],
        "proj_out.bias": [64],
    }
    expected = {"key_gate_logit": [], "value_gate_logit": [], "gate_temperature": []}
    expected |= {f"{kind}_{name}": shape for kind in ("key", "value") for name, shape in stages.items()}
    assert {name: list(tensor.shape) for name, tensor in state.items()} == expected
    assert len(state) == 33
    order = list(dict.fromkeys(name.split(".")[0] for name in state))
    assert order[:5] == ["key_gate_logit", "value_gate_logit", "gate_temperature", "key_in", "value_in"]
    assert order[5:9] == ["key_mlp1", "value_mlp1", "key_scalar_mlp2", "value_scalar_mlp2"]


@pytest.mark.parametrize(
    ("heads", "dim", "parameters"), [(2, 64, 17_066_002), (8, 64, 17_852_434), (8, 128, 18_901_010)]
)
def test_a_layer_has_as_many_parameters_as_published(heads: int, dim: int, parameters: int) -> None:
    with torch.device("meta"):
        fuser = C2CFuser(dim, 128, heads, 8)
    assert sum(parameter.numel() for parameter in fuser.parameters()) == parameters


@settings(max_examples=25)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(3, 5), st.integers(2, 6))
def test_each_column_is_fused_alone_for_all_sizes(
    from_heads: int, from_dim: int, to_heads: int, to_dim: int, layers: int, seq: int
) -> None:
    fuser = C2CFuser(from_dim, to_dim, from_heads, to_heads, 6, 5, layers).eval()
    source, target = torch.randn(2, 1, from_heads, seq, from_dim), torch.randn(2, 1, to_heads, seq, to_dim)
    assert apart(fuser((source[0], source[1]), (target[0], target[1])), (target[0], target[1])) == 0
    with torch.no_grad():
        fuser.key_gate_logit.fill_(1)
        fuser.value_gate_logit.fill_(1)
    whole = fuser((source[0], source[1]), (target[0], target[1]))
    halves = [
        fuser((source[0][:, :, at], source[1][:, :, at]), (target[0][:, :, at], target[1][:, :, at]))
        for at in (slice(0, seq // 2), slice(seq // 2, seq))
    ]
    joined = tuple(torch.cat([half[kind] for half in halves], 2) for kind in range(2))
    assert apart(whole, (joined[0], joined[1])) < 1e-5
    assert whole[0].shape == target[0].shape


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_layers": 2}, "num_layers is 2, expected 3"),
        ({"hidden_dim": 0}, "hidden_dim is 0, expected 1"),
        ({"source_dim": -1}, "source_dim is -1"),
        ({"target_num_heads": 10**30}, "target_num_heads is 1000"),
        ({"anneal_steps": 0}, "anneal_steps is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"initial_temperature": 0.0}, "initial_temperature is 0.0"),
        ({"final_temperature": math.nan}, "final_temperature is nan"),
        ({"dtype": torch.int8}, "dtype is torch.int8"),
    ],
)
def test_arguments_that_make_no_fuser_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        C2CFuser(**(SIZES | changes))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda source, target: (target, source),
        lambda source, target: ((source[0], source[1][:, :1]), target),
        lambda source, target: (source, (target[0], target[1][..., :8])),
        lambda source, target: ((source[0][:, :, 1:], source[1][:, :, 1:]), target),
        lambda source, target: (source, (target[0], target[1][:, :, 1:])),
        lambda source, target: ((source[0][:1], source[1][:1]), target),
        lambda source, target: (source, (target[0][0], target[1][0])),
    ],
)
def test_shapes_that_do_not_fit_are_refused(spoil: Any) -> None:
    source, target = spoil(*columns())
    with pytest.raises(
        UsageError, match=r"expected twice \[batch, 2, seq, 8\] and twice \[batch, 4, seq, 16\]"
    ) as told:
        instance()(source, target)
    assert str(list(source[1].shape)) in told.value.problem


def test_a_step_before_the_first_is_refused() -> None:
    with pytest.raises(UsageError, match="no step -1"):
        instance().update_temperature(-1)
