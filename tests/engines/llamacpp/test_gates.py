"""The gate lets llama.cpp's caches pass, its own and those from and to transformers, and finds what mixes them up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from unspoken.cache import KVLayer
from unspoken.engines.gate import BOUNDS, DIVERGENCES, GateResult, ensure, ensure_pair, measure, measure_pair
from unspoken.engines.llamacpp import columns as module
from unspoken.engines.llamacpp.columns import Translation
from unspoken.engines.llamacpp.engine import LlamaCppEngine
from unspoken.errors import GateFailed, IncompatibleCache

from .tiny import WIDE

Engines = Callable[..., Any]
KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")
CHECKS = {"continue", "moved", "stored", "causal"}


@pytest.fixture
def mistaken(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Change how an engine's cells become columns."""

    def make(engine: LlamaCppEngine, **changes: Any) -> None:
        monkeypatch.setattr(engine, "_translation", replace(engine._translation, **changes))

    return make


def passed(found: GateResult, kv_type: str, share: float) -> None:
    """See that a result passed by the bounds of a type, and that rounding took only a share of them."""
    assert found.passed
    assert (found.bound, found.divergence_bound) == (BOUNDS[f"ggml-{kv_type}"], DIVERGENCES[f"ggml-{kv_type}"])
    assert max(found.checks.values()) < share * found.bound
    assert found.divergence < share * found.divergence_bound


def test_every_kind_passes_by_itself_and_with_transformers_both_ways(
    kind: str, tiny_llama: Engines, tiny_hf: Engines
) -> None:
    ours, theirs = tiny_llama(kind, **WIDE), tiny_hf(kind, **WIDE)
    alone = ensure(ours, None)
    passed(alone, "f32", 0.5)
    assert alone.checks.keys() == CHECKS
    for sender, receiver in ((theirs, ours), (ours, theirs)):
        found = measure_pair(sender, receiver)
        passed(found, "f32", 0.2)
        assert found.checks.keys() == {"continue", "moved"}


@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_every_type_of_cells_passes_by_itself_and_with_transformers_both_ways(
    kv_type: str, tiny_llama: Engines, tiny_hf: Engines
) -> None:
    ours, theirs = tiny_llama("llama", kv_type, **WIDE), tiny_hf("llama", **WIDE)
    passed(ensure(ours, None), kv_type, 0.5)
    passed(measure_pair(theirs, ours), kv_type, 0.5)
    passed(measure_pair(ours, theirs), kv_type, 0.5)


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_two_types_of_cells_go_on_from_each_other(kv_type: str, tiny_llama: Engines) -> None:
    fine, coarse = tiny_llama("llama", **WIDE), tiny_llama("llama", kv_type, **WIDE)
    for sender, receiver in ((fine, coarse), (coarse, fine)):
        passed(measure_pair(sender, receiver), kv_type, 0.5)


@pytest.mark.parametrize(
    ("kind", "kv_type"), [*(("llama", each) for each in KV_TYPES), ("qwen2", "f16"), ("qwen3", "q8_0")]
)
def test_a_wrong_order_of_a_heads_coordinates_is_found(
    kind: str, kv_type: str, tiny_llama: Engines, tiny_hf: Engines, mistaken: Callable[..., None]
) -> None:
    ours, theirs = tiny_llama(kind, kv_type, **WIDE), tiny_hf(kind, **WIDE)
    sound = measure(ours)
    mistaken(ours, interleaved=not ours._translation.interleaved)
    found = measure(ours)
    assert not found.passed
    # Put back as it was taken out, nothing shows; turned to other positions, it does.
    assert {name: found.checks[name] for name in CHECKS - {"moved"}} == {
        name: sound.checks[name] for name in CHECKS - {"moved"}
    }
    assert found.divergence > 10 * sound.divergence
    with pytest.raises(GateFailed, match=r"moved \d\.\d+e\+00"):
        ensure(ours, None)
    for sender, receiver in ((theirs, ours), (ours, theirs)):
        assert not measure_pair(sender, receiver).passed


@pytest.mark.parametrize("kv_type", ["q4_0"])
def test_a_wrong_order_is_found_in_a_model_with_small_logits(
    kv_type: str, tiny_llama: Engines, mistaken: Callable[..., None]
) -> None:
    ours = tiny_llama("llama", kv_type, head_dim=64)
    mistaken(ours, interleaved=False)
    assert not measure(ours).passed


def test_columns_that_stay_rotated_are_found(
    tiny_llama: Engines, tiny_hf: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = tiny_llama("llama", "q8_0", **WIDE), tiny_hf("llama", **WIDE)
    assert ours._translation.rotations == (64, 64)
    monkeypatch.setattr(module, "hadamard", lambda values, size: values)
    found = measure(ours)
    assert not found.passed
    assert found.checks["moved"] > found.bound
    for sender, receiver in ((theirs, ours), (ours, theirs)):
        pair = measure_pair(sender, receiver)
        assert not pair.passed
        assert min(pair.checks.values()) > pair.bound


def test_values_alone_that_stay_rotated_are_found_between_two_engines(
    tiny_llama: Engines, tiny_hf: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Heads of 128 have their keys rotated whole and their values in halves.
    larger = WIDE | {"head_dim": 128, "num_key_value_heads": 1}
    ours, theirs = tiny_llama("llama", "q8_0", **larger), tiny_hf("llama", **larger)
    assert ours._translation.rotations == (128, 64)
    passed(measure_pair(theirs, ours), "q8_0", 0.5)
    whole = module.hadamard
    monkeypatch.setattr(module, "hadamard", lambda values, size: values if size == 64 else whole(values, size))
    # Values are not turned by position: within one engine it makes no difference, so its own gate cannot see it.
    assert measure(ours).passed
    for sender, receiver in ((theirs, ours), (ours, theirs)):
        assert not measure_pair(sender, receiver).passed


@pytest.mark.parametrize("rotations", [(0, 0), (64, 0), (0, 64), (128, 64)])
def test_rotations_that_are_not_those_of_the_state_are_refused(
    rotations: tuple[int, int], tiny_llama: Engines, mistaken: Callable[..., None]
) -> None:
    ours = tiny_llama("llama", "q8_0", **WIDE)
    if not ours._translation.tells_rotations:
        pytest.skip("this library's states do not tell how they are rotated")
    mistaken(ours, rotations=rotations)
    with pytest.raises(IncompatibleCache, match=r"rotations \(64, 64\), expected"):
        measure(ours)


def test_a_layer_in_anothers_place_is_found(tiny_llama: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = tiny_llama("llama", "f16", **WIDE)
    whole = Translation.columns

    def swapped(self: Translation, blob: Any) -> list[KVLayer]:
        first, second = whole(self, blob)
        return [replace(second, index=0), replace(first, index=1)]

    monkeypatch.setattr(Translation, "columns", swapped)
    found = measure(ours)
    assert {name for name in ("continue", "stored", "causal") if found.checks[name] > found.bound}
    assert not found.passed


def test_a_pair_that_fails_is_refused_with_its_numbers(
    tiny_llama: Engines, tiny_hf: Engines, mistaken: Callable[..., None], tmp_path: Path
) -> None:
    ours, theirs = tiny_llama("llama", "f16", **WIDE), tiny_hf("llama", **WIDE)
    mistaken(ours, interleaved=False)
    with pytest.raises(
        GateFailed, match="llamacpp engine does not go on from caches of 'tiny' made by transformers"
    ) as error:
        ensure_pair("transformers", ours, lambda: theirs, tmp_path)
    assert "at most 2e-01 is allowed" in error.value.problem
    assert list(tmp_path.iterdir()) == []


def test_another_model_makes_no_pair(tiny_llama: Engines, tiny_hf: Engines) -> None:
    with pytest.raises(IncompatibleCache, match="weights is"):
        measure_pair(tiny_hf("llama", 1, **WIDE), tiny_llama("llama", **WIDE))


def test_half_precision_columns_of_one_engine_are_taken_by_the_other(
    tiny_llama: Engines, tiny_hf: Engines, content: Callable[..., Any]
) -> None:
    ours, theirs = tiny_llama("llama", "bf16", **WIDE), tiny_hf("llama", **WIDE)
    source, question = content(ours, "The old mill is run by Anna."), content(ours, " Who runs it?")
    cache = ours.prefill(source)
    assert cache.manifest.dtype == "bfloat16"
    found, expected = theirs.logits(question, cache), theirs.logits(source + question)[len(source.token_ids) :]
    assert float((found - expected).abs().max()) < BOUNDS["ggml-bf16"]
    assert float((theirs.logits(question) - expected).abs().max()) > BOUNDS["ggml-bf16"]
    assert torch.equal(cache.layers[0].keys, ours.prefill(source).layers[0].keys)
