"""All layers of a pair, and several senders: against single fusers, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from unspoken.errors import UsageError
from unspoken.fusers.c2c import KV, C2CFuser
from unspoken.fusers.c2c_complex import C2CComplexFuser
from unspoken.fusers.c2c_pair import C2CPair, fused_in_parallel, fused_in_sequence
from unspoken.fusers.layermap import last_aligned

TARGET_LAYERS, SOURCE_LAYERS = 4, 3


def pair_of(seed: int, *closed: int, source_dim: int = 6) -> C2CPair:
    """A pair over 4 and 3 layers, its gates open but for those of some layers."""
    torch.manual_seed(seed)
    fusers = [C2CFuser(source_dim, 4, 2, 2, 8, 8, dropout=0.0) for _ in range(TARGET_LAYERS)]
    with torch.no_grad():
        for at, fuser in enumerate(fusers):
            fuser.key_gate_logit.fill_(-1 if at in closed else 1)
            fuser.value_gate_logit.fill_(-1 if at in closed else 1)
    sources = last_aligned(TARGET_LAYERS, SOURCE_LAYERS)
    return C2CPair(fusers, {target: (first, target) for target, (first,) in enumerate(sources)}).eval()


def cache(layers: int, dim: int, seed: int) -> list[KV]:
    drawn = torch.Generator().manual_seed(seed)
    made = torch.randn(layers, 2, 1, 2, 5, dim, generator=drawn)
    return [(layer[0], layer[1]) for layer in made]


SOURCE, OTHER, TARGET = cache(SOURCE_LAYERS, 6, 1), cache(SOURCE_LAYERS, 3, 2), cache(TARGET_LAYERS, 4, 3)


def equal(found: Sequence[KV], expected: Sequence[KV]) -> bool:
    return all(torch.equal(a, b) for x, y in zip(found, expected, strict=True) for a, b in zip(x, y, strict=True))


def test_each_layer_hears_its_source_through_its_fuser() -> None:
    pair = pair_of(0, 2)
    expected = [
        pair.fusers[0](SOURCE[0], TARGET[0]),
        pair.fusers[1](SOURCE[0], TARGET[1]),
        TARGET[2],
        pair.fusers[3](SOURCE[2], TARGET[3]),
    ]
    assert equal(pair(SOURCE, TARGET), expected)
    assert not equal(pair(SOURCE, TARGET), TARGET)


def test_layers_without_a_fuser_are_the_very_same_tensors() -> None:
    torch.manual_seed(0)
    fuser = C2CFuser(6, 4, 2, 2, 8, 8)
    with torch.no_grad():
        fuser.key_gate_logit.fill_(1)
    pair = C2CPair([fuser, C2CComplexFuser(6, 4, 2, 2, 8, 8)], {1: (2, 0), 3: (0, 1)}).eval()
    fused = pair(SOURCE, TARGET)
    assert [mine is theirs for mine, theirs in zip(fused, TARGET, strict=True)] == [True, False, True, False]
    assert torch.equal(fused[1][0], fuser(SOURCE[2], TARGET[1])[0])


def test_noise_is_drawn_layer_by_layer() -> None:
    pair = pair_of(0).train()
    noise = torch.Generator().manual_seed(5)
    expected = [
        pair.fusers[fuser](SOURCE[source], TARGET[target], noise) for target, (source, fuser) in pair.layers.items()
    ]
    assert equal(pair(SOURCE, TARGET, torch.Generator().manual_seed(5)), expected)


def test_in_parallel_each_sender_adds_to_the_clean_cache() -> None:
    pairs = [pair_of(0), pair_of(1, 1, source_dim=3)]
    first, second = pairs[0](SOURCE, TARGET), pairs[1](OTHER, TARGET)
    summed = fused_in_parallel(pairs, [SOURCE, OTHER], TARGET)
    for clean, one, two, found in zip(TARGET, first, second, summed, strict=True):
        for kind in range(2):
            expected = clean[kind] + (one[kind] - clean[kind]) + (two[kind] - clean[kind])
            assert torch.allclose(found[kind], expected, atol=1e-6)
    swapped = fused_in_parallel(pairs[::-1], [OTHER, SOURCE], TARGET)
    assert all(torch.allclose(a[0], b[0], atol=1e-6) for a, b in zip(summed, swapped, strict=True))


def test_in_sequence_each_sender_adds_to_what_those_before_it_made() -> None:
    pairs = [pair_of(0), pair_of(1, 1, source_dim=3)]
    expected = pairs[1](OTHER, pairs[0](SOURCE, TARGET))
    found = fused_in_sequence(pairs, [SOURCE, OTHER], TARGET)
    assert equal(found, expected)
    assert not torch.allclose(found[0][0], fused_in_parallel(pairs, [SOURCE, OTHER], TARGET)[0][0], atol=1e-3)


@pytest.mark.parametrize("fuse", [fused_in_parallel, fused_in_sequence])
def test_one_sender_alone_or_beside_closed_gates_is_exactly_its_own_result(fuse: object) -> None:
    assert callable(fuse)
    alone, silent = pair_of(0), pair_of(1, 0, 1, 2, 3, source_dim=3)
    expected = alone(SOURCE, TARGET)
    assert equal(fuse([alone], [SOURCE], TARGET), expected)
    assert equal(fuse([alone, silent], [SOURCE, OTHER], TARGET), expected)
    assert equal(fuse([], [], TARGET), TARGET)
    with pytest.raises(UsageError, match="2 senders' caches for 1 pairs"):
        fuse([alone], [SOURCE, OTHER], TARGET)


def test_the_temperature_is_every_fusers() -> None:
    pair = pair_of(0)
    pair.update_temperature(500)
    held = [tensor.item() for name, tensor in pair.named_buffers() if name.endswith("gate_temperature")]
    assert held == pytest.approx([0.1668764] * TARGET_LAYERS, abs=5e-8)


def test_only_the_fusers_get_gradients() -> None:
    pair = pair_of(0).train()
    sum(keys.square().mean() + values.square().mean() for keys, values in pair(SOURCE, TARGET)).backward()
    assert all(parameter.grad is not None for parameter in pair.parameters())
    assert not any(tensor.requires_grad for layer in (*SOURCE, *TARGET) for tensor in layer)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ({0: (0, 1)}, "fuser 1 of 1"),
        ({0: (0, -1)}, "fuser -1 of 1"),
        ({-1: (0, 0)}, "Layer -1"),
        ({0: (-2, 0)}, "layer -2"),
        ({}, r"\[0\] serve no layer"),
    ],
)
def test_maps_that_lead_nowhere_are_refused(layers: dict[int, tuple[int, int]], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        C2CPair([C2CFuser(6, 4, 2, 2, 8, 8)], layers)


def test_too_few_layers_are_refused() -> None:
    with pytest.raises(UsageError, match="3 sender and 3 receiver layers, expected at least 3 and 4"):
        pair_of(0)(SOURCE, TARGET[:3])
    with pytest.raises(UsageError, match="2 sender and 4 receiver layers"):
        pair_of(0)(SOURCE[:2], TARGET)
    with pytest.raises(UsageError, match="expected twice"):
        pair_of(0)(OTHER, TARGET)
    assert C2CPair([], {})([], TARGET) == TARGET
