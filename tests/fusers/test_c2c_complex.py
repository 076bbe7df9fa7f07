"""C2C-C: a value worked out by hand, a second implementation from the formulae, and the published names."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from unspoken.errors import UsageError
from unspoken.fusers.c2c import KV
from unspoken.fusers.c2c_complex import C2CComplexFuser


def instance(hidden: int = 32, dropout: float = 0.0, logit: float = 0.3) -> C2CComplexFuser:
    """A fuser from heads 2 x 8 to 4 x 16."""
    torch.manual_seed(0)
    fuser = C2CComplexFuser(8, 16, 2, 4, hidden_dim=hidden, weight_hidden_dim=24, dropout=dropout).eval()
    with torch.no_grad():
        fuser.gate_logit.fill_(logit)
    return fuser


def columns() -> tuple[KV, KV]:
    """A source and a target for it."""
    drawn = torch.Generator().manual_seed(1)
    keys, values = torch.randn(2, 2, 2, 5, 8, generator=drawn)
    to_keys, to_values = torch.randn(2, 2, 4, 5, 16, generator=drawn)
    return (keys, values), (to_keys, to_values)


def by_formulae(state: dict[str, Tensor], source: KV, target: KV, gate: Tensor) -> KV:
    """The fuser without dropout, from a state dict and nothing of the package."""

    def linear(name: str, x: Tensor) -> Tensor:
        return torch.einsum("oi,bni->bno", state[f"{name}.weight"], x) + state[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    def swiglu(name: str, x: Tensor) -> Tensor:
        gated = linear(f"{name}.gate_proj", x)
        return gated * torch.sigmoid(gated) * linear(f"{name}.up_proj", x)

    def residual(x: Tensor, y: Tensor) -> Tensor:
        return x + y if x.shape[-1] == y.shape[-1] else y

    batch, heads, seq, dim = target[0].shape
    combined = []
    for kind, mine, other in zip(("key", "value"), source, target, strict=True):
        x = torch.cat([mine[:, head] for head in range(mine.shape[1])], -1)
        x = residual(x, norm(f"{kind}_projection.layers.1", swiglu(f"{kind}_projection.layers.0", x)))
        x = residual(x, norm(f"{kind}_projection.layers.3", swiglu(f"{kind}_projection.layers.2", x)))
        x = residual(x, linear(f"{kind}_projection.layers.4", x))
        flat = torch.cat([other[:, head] for head in range(heads)], -1)
        combined.append(linear(f"{kind}_combiner", torch.cat([x, flat], -1)).reshape(batch, seq, heads, dim))
    pieces = [piece for head in range(heads) for piece in (target[0][:, head], combined[0][:, :, head])]
    hidden = functional.gelu(norm("weight_hidden.layers.1", linear("weight_hidden.layers.0", torch.cat(pieces, -1))))
    hidden = linear("weight_hidden.layers.3", hidden)
    fused = []
    for kind, other, added in zip(("key", "value"), target, combined, strict=True):
        weight = torch.sigmoid(linear(f"{kind}_weight_head", hidden))
        fused.append(other + gate * weight.transpose(1, 2)[..., None] * added.transpose(1, 2))
    return fused[0], fused[1]


def apart(found: KV, expected: KV) -> float:
    return max(float((a - b).detach().abs().max()) for a, b in zip(found, expected, strict=True))


def test_one_number_is_fused_as_by_hand() -> None:
    fuser = C2CComplexFuser(1, 1, hidden_dim=1, weight_hidden_dim=1, dropout=0.0).eval()
    with torch.no_grad():
        for parameter in fuser.parameters():
            parameter.zero_()
        for projection in (fuser.key_projection, fuser.value_projection):
            # The layer norm of one number is its bias: 2 + 1 = 3, then 3 + 1 = 4, then 4 + 4 / 2 = 6.
            projection.layers[1].bias.fill_(1)
            projection.layers[3].bias.fill_(1)
            projection.layers[4].weight.fill_(0.5)
        for combiner in (fuser.key_combiner, fuser.value_combiner):
            combiner.weight.copy_(torch.tensor([[0.5, 1.0]]))  # The projected comes first: 6 / 2 + 4 = 7.
        fuser.weight_hidden.layers[1].bias.fill_(1)  # GELU(1) = 0.8413447.
        fuser.weight_hidden.layers[3].weight.fill_(1)
        fuser.key_weight_head.weight.fill_(1)
        fuser.key_weight_head.bias.fill_(-0.8413447)  # sigmoid(0) = 0.5.
        fuser.value_weight_head.bias.fill_(math.log(3))  # sigmoid(log 3) = 0.75.
        fuser.gate_logit.fill_(1)
    source, target = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 4.0)
    keys, values = fuser((source, source), (target, target))
    assert keys.item() == pytest.approx(4 + 0.5 * 7, abs=1e-6)
    assert values.item() == pytest.approx(4 + 0.75 * 7, abs=1e-6)


# As wide as the source, as the target, and as neither: each has residuals elsewhere.
@pytest.mark.parametrize("hidden", [16, 64, 32])
def test_evaluation_equals_the_formulae(hidden: int) -> None:
    fuser = instance(hidden)
    source, target = columns()
    fused = fuser(source, target)
    assert apart(fused, by_formulae(fuser.state_dict(), source, target, torch.tensor(1.0))) <= 1e-6
    assert apart(fused, target) > 0.1


def test_training_draws_one_number_for_keys_and_values() -> None:
    fuser = instance().train()
    fuser.update_temperature(500)
    source, target = columns()
    noise = torch.rand((), generator=torch.Generator().manual_seed(7))
    gate = torch.sigmoid((0.3 - torch.log(-torch.log(noise))) / 0.1668764)
    fused = fuser(source, target, torch.Generator().manual_seed(7))
    assert apart(fused, by_formulae(fuser.state_dict(), source, target, gate)) <= 1e-6
    (fused[0].square().mean() + fused[1].square().mean()).backward()
    assert all(parameter.grad is not None for parameter in fuser.parameters())
    assert not any(tensor.requires_grad for tensor in (*source, *target))


@pytest.mark.parametrize("logit", [0.0, -1.0])
def test_a_closed_gate_is_exactly_the_identity(logit: float) -> None:
    source, target = columns()
    keys, values = instance(logit=logit)(source, target)
    assert torch.equal(keys, target[0])
    assert torch.equal(values, target[1])


@pytest.mark.parametrize(
    ("dropout", "projection", "net"), [(0.1, ("0", "1", "3", "4", "6"), "014"), (0.0, ("0", "1", "2", "3", "4"), "013")]
)
def test_the_state_dicts_numbers_count_a_dropout_only_if_there_is_one(
    dropout: float, projection: tuple[str, ...], net: str
) -> None:
    names = list(instance(dropout=dropout).state_dict())
    first, norm, second, other_norm, last = projection
    parts = [f"{swiglu}.{name}" for swiglu in (first, second) for name in ("gate_proj", "up_proj")]
    layers = [*parts, norm, other_norm, last]
    expected = [f"{kind}_projection.layers.{each}" for kind in ("key", "value") for each in layers]
    expected += [f"weight_hidden.layers.{each}" for each in net]
    expected += [f"{kind}_{name}" for kind in ("key", "value") for name in ("weight_head", "combiner")]
    assert names[:2] == ["gate_logit", "gate_temperature"]
    assert sorted(names[2:]) == sorted(f"{each}.{end}" for each in expected for end in ("weight", "bias"))


def test_a_layer_has_as_many_parameters_as_published() -> None:
    with torch.device("meta"):
        fuser = C2CComplexFuser(128, 128, 8, 8)
    assert round(sum(parameter.numel() for parameter in fuser.parameters()) / 1e6, 2) == 17.87


def test_a_bfloat16_fuser_gives_bfloat16() -> None:
    source, target = columns()
    exact = instance()(source, target)
    cast = [(pair[0].bfloat16(), pair[1].bfloat16()) for pair in (source, target)]
    fused = instance().bfloat16()(cast[0], cast[1])
    assert [each.dtype for each in fused] == [torch.bfloat16, torch.bfloat16]
    assert apart((fused[0].float(), fused[1].float()), exact) < 0.05


def test_what_makes_no_fuser_is_refused() -> None:
    with pytest.raises(UsageError, match="weight_hidden_dim is 0"):
        C2CComplexFuser(8, 16, weight_hidden_dim=0)
    source, target = columns()
    with pytest.raises(UsageError, match=r"expected twice \[batch, 2, seq, 8\]"):
        instance()(target, source)
    with pytest.raises(UsageError, match="no step -3"):
        instance().update_temperature(-3)
