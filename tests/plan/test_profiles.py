"""Three machines: which weights and caches are chosen for them, and what is said where nothing fits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from unspoken.errors import ContextOverflow, UsageError
from unspoken.plan.fit import Budget, Fit, ram_bytes, vram_bytes
from unspoken.plan.profiles import COMFORTABLE, MINIMUM, OPTIMAL, PROFILES, Profile, overview, plan, recommended
from unspoken.plan.shape import KNOWN, quantised
from unspoken.plan.source import Model, find

LLAMA = KNOWN["llama-3.1-8b"]


def _typical() -> Model:
    return find("llama-3.1-8b")


def _only(kind: str) -> Model:
    """A model that there is in one quantisation only, as a file."""
    return replace(_typical(), choices=(quantised(LLAMA, kind),), arguments={kind: "llama.gguf"})


def _fit(**changes: Any) -> Fit:
    plain = {
        "kv_type": "f16", "bytes_per_token": 1, "bytes_per_agent": 1, "fits": True, "gpu_layers": 0, "layers_on_gpu": 0,
        "layers_in_ram": 32, "vram_bytes": 0, "ram_bytes": 0, "resident_bytes_cpu": 0, "agents_at_once": 1,
        "longest_context": 1, "mode": "sequential", "parked_bytes": 0, "parked_in": None,
    }  # fmt: skip
    return Fit(**(plain | changes))


def test_the_profiles_are_a_small_a_medium_and_a_large_machine() -> None:
    assert PROFILES == (MINIMUM, COMFORTABLE, OPTIMAL)
    assert MINIMUM.budget == Budget(6_000_000_000, 19_400_000_000)
    assert [profile.aim for profile in PROFILES] == ["sequential", "parallel", "batches"]
    assert [profile.budget.vram_bytes // 10**9 for profile in PROFILES] == [6, 16, 48]


def test_more_memory_is_used_for_more_precise_weights() -> None:
    found = overview(_typical(), agents=3)
    assert [each.weights.name for each in found.plans] == ["Q4_K_M", "Q8_0", "F16"]
    assert [each.kv_type for each in found.plans] == ["f16"] * 3
    fits = [each.fit_by_kv_type["f16"] for each in found.plans]
    assert [fit.gpu_layers for fit in fits] == [33] * 3
    assert [fit.mode for fit in fits] == ["sequential", "parallel", "parallel"]
    assert fits[0].agents_at_once < 3 <= fits[1].agents_at_once < fits[2].agents_at_once


def test_many_agents_cost_precision_of_the_weights_where_they_are_to_be_parallel() -> None:
    plans = [plan(_typical(), COMFORTABLE, 4096, agents) for agents in (3, 20, 30)]
    chosen = [(each.weights.name, each.kv_type) for each in plans]
    assert chosen == [("Q8_0", "f16"), ("Q8_0", "q8_0"), ("Q5_K_M", "q8_0")]
    assert all(each.fit_by_kv_type[each.kv_type or ""].mode == "parallel" for each in plans)
    assert plan(_typical(), replace(COMFORTABLE, aim="sequential"), 4096, 30).weights.name == "Q8_0"
    # More than fit in whatever weights: then as if there was one.
    assert plan(_typical(), COMFORTABLE, 4096, 200).weights.name == "Q8_0"


def test_the_command_is_the_one_that_was_planned() -> None:
    found = plan(_only("Q5_K_M"), MINIMUM, 4096, 3)
    fit = found.fit_by_kv_type[found.kv_type or ""]
    assert 0 < fit.gpu_layers < 32
    assert found.command == (
        f"unspoken prove --engine llamacpp --model llama.gguf --kv-type {found.kv_type} "
        f"--gpu-layers {fit.gpu_layers} --context 4096"
    )
    assert vram_bytes(LLAMA, found.weights, fit.gpu_layers, 4096, fit.kv_type) <= 6e9
    assert vram_bytes(LLAMA, found.weights, fit.gpu_layers + 1, 4096, fit.kv_type) > 6e9


def test_the_command_has_room_for_all_that_is_resident() -> None:
    contexts = [(each.command or "").split("--context ")[1] for each in overview(_typical(), agents=3).plans]
    assert contexts == ["4096", "12288", "12288"]  # One agent at a time, then three at once.
    assert (plan(_typical(), OPTIMAL, 100_000, 3).command or "").endswith(f"--context {LLAMA.context}")


@pytest.mark.parametrize(
    ("fits", "aim", "kind"),
    [
        ({"f16": _fit(), "q8_0": _fit(), "q4_0": _fit()}, "sequential", "f16"),
        ({"f16": _fit(layers_on_gpu=28), "q8_0": _fit(layers_on_gpu=30)}, "sequential", "q8_0"),
        ({"f16": _fit(layers_on_gpu=28), "q4_0": _fit(layers_on_gpu=30)}, "sequential", "f16"),
        ({"f16": _fit(fits=False), "q8_0": _fit(), "q4_0": _fit(layers_on_gpu=9)}, "sequential", "q8_0"),
        ({"f16": _fit(fits=False), "q8_0": _fit(fits=False), "q4_0": _fit()}, "sequential", "q4_0"),
        ({"f16": _fit(), "q8_0": _fit(agents_at_once=3)}, "sequential", "f16"),
        ({"f16": _fit(), "q8_0": _fit(agents_at_once=3)}, "parallel", "q8_0"),
        ({"f16": _fit(agents_at_once=3), "q8_0": _fit(agents_at_once=6)}, "parallel", "f16"),
        ({"f16": _fit(fits=False)}, "parallel", None),
    ],
)  # fmt: skip
def test_caches_are_as_precise_as_costs_neither_layers_nor_agents(
    fits: dict[str, Fit], aim: Any, kind: str | None
) -> None:
    assert recommended(fits, Profile("x", Budget(0, 0), aim), 3) == kind


def test_without_a_gpu_everything_is_in_ram() -> None:
    found = overview(_typical(), 3, 4096, Budget(0, 19_400_000_000)).plans[0]
    fit = found.fit_by_kv_type[found.kv_type or ""]
    assert (found.weights.name, fit.gpu_layers, fit.layers_in_ram, fit.vram_bytes) == ("Q4_K_M", 0, 32, 0)
    assert "--gpu-layers 0 " in (found.command or "")


def test_where_nothing_fits_it_says_what_would() -> None:
    model = _only("Q8_0")
    found = overview(model, 1, 8192, Budget(0, 6_000_000_000)).plans[0]
    assert (found.fits, found.kv_type, found.command) == (False, None, None)
    assert not any(fit.fits for fit in found.fit_by_kv_type.values())
    smaller, more = found.advice
    assert smaller.startswith("Q4_K_M weights, about 4.9 GB")
    assert more == f"{ram_bytes(LLAMA, model.choices[0], 0, 8192, 'q4_0') / 1e9:.1f} GB of RAM, without any GPU"


def test_a_shorter_context_that_would_fit_does_fit() -> None:
    model, budget = _only("Q4_K_M"), Budget(0, 6_000_000_000)
    shorter = overview(model, 1, 65_536, budget).plans[0].advice[0]
    columns = int(shorter.split("--context ")[1].rstrip(")"))
    assert "q4_0" in shorter
    assert overview(model, 1, columns, budget).plans[0].fit_by_kv_type["q4_0"].fits
    assert not overview(model, 1, columns + 1, budget).plans[0].fit_by_kv_type["q4_0"].fits


def test_heads_that_no_block_divides_are_planned_without_quantised_caches() -> None:
    odd = replace(LLAMA, head_dim=80)
    model = Model(odd, (quantised(odd, "Q4_K_M"),), "a test", {})
    assert overview(model, 3).plans[0].kv_type == "f16"
    assert overview(model, 3, 4096, Budget(0, 10**9)).plans[0].advice


def test_the_context_is_4096_or_the_models_own() -> None:
    assert overview(_typical(), 3).context == 4096
    short = replace(_typical(), shape=replace(LLAMA, context=2048))
    assert overview(short, 3).context == 2048
    with pytest.raises(ContextOverflow, match=r"context of 2049 columns is more than .* made for: 2048") as caught:
        overview(short, 3, 2049)
    assert "shorter --context" in caught.value.hint


@pytest.mark.parametrize(
    ("agents", "context", "problem"),
    [(0, None, "0 agents"), (-1, 10, "-1 agents"), (1, 0, "context of 0"), (1, -5, "-5")],
)
def test_no_agent_and_no_column_are_no_plan(agents: int, context: int | None, problem: str) -> None:
    with pytest.raises(UsageError, match=problem) as caught:
        overview(_typical(), agents, context)
    assert caught.value.hint.startswith("Give at least --")
