"""The arithmetic of a plan against figures calculated by hand, and against what llama.cpp reports."""

from __future__ import annotations

from dataclasses import replace

import pytest

from unspoken.errors import UsageError
from unspoken.plan.fit import (
    GPU_BYTES,
    KV_TYPES,
    MOST_AGENTS,
    PROCESS_BYTES,
    Budget,
    cache_bytes_per_token,
    compute_buffer_bytes,
    fit,
    kv_types,
    longest_context,
    most_layers,
    ram_bytes,
    resident_bytes_cpu,
    vram_bytes,
)
from unspoken.plan.shape import KNOWN, Shape, Weights, quantised

LLAMA = KNOWN["llama-3.1-8b"]
SMOLLM2 = Shape("smollm2", 30, 576, 1536, 9, 3, 64, 49152, 8192, tied=True)
# Sizes that can be added up in one's head: layers of 100 MB, a cache of 1024 bytes per column and layer in f16.
PLAIN = Shape("plain", 10, 1024, 2048, 8, 4, 64, 1000, 100_000)
ROUND = Weights("round", (100_000_000,) * 10, 50_000_000, 70_000_000, tied=False, estimated=False)
MUCH = 10**12


@pytest.mark.parametrize(
    ("shape", "kind", "kibibytes"),
    [
        (LLAMA, "f16", 128),
        (LLAMA, "bf16", 128),
        (LLAMA, "f32", 256),
        (LLAMA, "q8_0", 68),
        (LLAMA, "q4_0", 36),
        (replace(LLAMA, layers=36), "f16", 144),
        (replace(LLAMA, layers=36), "q8_0", 76.5),
        (replace(LLAMA, layers=36), "q4_0", 40.5),
        (SMOLLM2, "f16", 22.5),
    ],
)
def test_a_column_takes_layers_times_heads_times_width_times_two_values(
    shape: Shape, kind: str, kibibytes: float
) -> None:
    assert cache_bytes_per_token(shape, kind) == kibibytes * 1024


def test_keys_and_values_may_have_types_of_their_own() -> None:
    mixed = cache_bytes_per_token(LLAMA, "q8_0", "f16")
    assert mixed == (cache_bytes_per_token(LLAMA, "q8_0") + cache_bytes_per_token(LLAMA, "f16")) // 2
    assert mixed == 32 * 8 * (128 // 32 * 34 + 128 * 2)


def test_blocks_that_would_reach_beyond_a_head_are_refused() -> None:
    odd = replace(LLAMA, head_dim=80)
    assert kv_types(odd) == ("f32", "f16", "bf16")
    assert kv_types(LLAMA) == tuple(KV_TYPES)
    for kind in ("q8_0", "q5_0", "int8", ""):
        with pytest.raises(UsageError, match="cannot be kept as") as caught:
            cache_bytes_per_token(odd, kind)
        assert "f16" in caught.value.hint


# `CPU compute buffer size` as llama.cpp b11549 logs it, through its C API with default parameters but n_batch and
# n_ubatch 512, n_seq_max 4, a unified cache and flash attention. The third is Llama-3.1-8B's shape with SmolLM2's
# vocabulary.
REPORTED = [
    (SMOLLM2, 512, 102.14),
    (SMOLLM2, 4096, 106.77),
    (replace(LLAMA, vocabulary=49152), 512, 136.52),
    (replace(LLAMA, vocabulary=49152), 4096, 140.02),
    (replace(LLAMA, vocabulary=49152), 16384, 160.10),
    (Shape("tiny", 2, 256, 512, 4, 2, 64, 49152, 2048), 512, 99.55),
]


@pytest.mark.parametrize(("shape", "columns", "mebibytes"), REPORTED)
def test_the_compute_buffer_is_estimated_as_llama_cpp_reports_it(shape: Shape, columns: int, mebibytes: float) -> None:
    assert compute_buffer_bytes(shape, columns) == pytest.approx(mebibytes * 2**20, rel=0.02)


def test_the_compute_buffer_grows_with_what_it_holds() -> None:
    assert compute_buffer_bytes(LLAMA, 1000) == 512 * (4 * (128256 + 5 * 4096) + 3 * 1000)
    assert compute_buffer_bytes(LLAMA, 1000, ubatch=256) * 2 == compute_buffer_bytes(LLAMA, 1000)
    narrow = replace(LLAMA, vocabulary=100)  # Then the feed-forward block is the widest.
    assert compute_buffer_bytes(narrow, 0) == 512 * 4 * (3 * 14336 + 5 * 4096)


def test_memory_is_the_sum_of_its_parts() -> None:
    buffer = compute_buffer_bytes(PLAIN, 2000)
    per_layer = 4 * 64 * 2 * 2
    assert vram_bytes(PLAIN, ROUND, 0, 2000, "f16") == 0
    assert (
        vram_bytes(PLAIN, ROUND, 3, 2000, "f16") == 300_000_000 + 70_000_000 + 3 * 2000 * per_layer + buffer + GPU_BYTES
    )
    on_cpu = 700_000_000 + 50_000_000 + 70_000_000 + 7 * 2000 * per_layer + buffer + PROCESS_BYTES
    assert ram_bytes(PLAIN, ROUND, 3, 2000, "f16") == on_cpu
    assert ram_bytes(PLAIN, ROUND, 10, 2000, "f16") == 50_000_000 + buffer + PROCESS_BYTES
    alone = ROUND.total_bytes + 2000 * cache_bytes_per_token(PLAIN, "f16") + buffer + PROCESS_BYTES
    assert resident_bytes_cpu(PLAIN, ROUND, 2000, "f16") == alone


def test_the_last_layers_go_to_the_gpu() -> None:
    uneven = replace(ROUND, layer_bytes=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512))
    both = vram_bytes(PLAIN, uneven, 2, 0, "f16"), ram_bytes(PLAIN, uneven, 2, 0, "f16")
    none = vram_bytes(PLAIN, replace(uneven, layer_bytes=(0,) * 10), 2, 0, "f16")
    assert both[0] - none == 256 + 512
    assert both[1] - ram_bytes(PLAIN, replace(uneven, layer_bytes=(0,) * 10), 2, 0, "f16") == 255


def test_a_tied_embedding_is_copied_to_the_gpu_and_counted_once_on_the_cpu() -> None:
    tied = replace(ROUND, tied=True)
    assert vram_bytes(PLAIN, tied, 1, 0, "f16") - vram_bytes(PLAIN, ROUND, 1, 0, "f16") == 50_000_000
    assert ram_bytes(PLAIN, tied, 0, 0, "f16") == ram_bytes(PLAIN, ROUND, 0, 0, "f16")
    assert tied.total_bytes == ROUND.total_bytes == 1_120_000_000


def test_as_many_layers_as_fit_go_to_the_gpu() -> None:
    for layers in range(11):
        exactly = vram_bytes(PLAIN, ROUND, layers, 2000, "f16")
        assert most_layers(PLAIN, ROUND, Budget(exactly, MUCH), "f16", 2000) == layers
        if layers:
            assert most_layers(PLAIN, ROUND, Budget(exactly - 1, MUCH), "f16", 2000) == layers - 1


@pytest.mark.parametrize(("layers", "option"), [(0, 0), (4, 4), (9, 9), (10, 11)])
def test_the_option_counts_the_output_as_one_more_layer(layers: int, option: int) -> None:
    found = fit(PLAIN, ROUND, Budget(vram_bytes(PLAIN, ROUND, layers, 2000, "f16"), MUCH), "f16", 2000, 1)
    assert (found.gpu_layers, found.layers_on_gpu, found.layers_in_ram) == (option, layers, 10 - layers)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_agents_at_once_are_counted_by_what_their_caches_take(count: int) -> None:
    enough = Budget(vram_bytes(PLAIN, ROUND, 10, count * 2000, "f16"), MUCH)
    assert fit(PLAIN, ROUND, enough, "f16", 2000, 3).agents_at_once == count
    if count > 1:  # With a byte less than one agent needs, a layer would leave the GPU instead.
        less = replace(enough, vram_bytes=enough.vram_bytes - 1)
        assert fit(PLAIN, ROUND, less, "f16", 2000, 3).agents_at_once == count - 1
    without = Budget(0, ram_bytes(PLAIN, ROUND, 0, count * 2000, "f16"))
    assert fit(PLAIN, ROUND, without, "f16", 2000, 3).agents_at_once == count


def test_llama_cpp_has_no_more_sequences_than_it_has() -> None:
    assert fit(PLAIN, ROUND, Budget(MUCH, MUCH), "f16", 10, 1).agents_at_once == MOST_AGENTS


def test_agents_that_fit_are_parallel_and_others_take_turns() -> None:
    room = Budget(vram_bytes(PLAIN, ROUND, 10, 3 * 2000, "f16"), MUCH)
    together = fit(PLAIN, ROUND, room, "f16", 2000, 3)
    assert (together.mode, together.parked_bytes, together.parked_in) == ("parallel", 0, None)
    assert together.vram_bytes == room.vram_bytes
    apart = fit(PLAIN, ROUND, room, "f16", 2000, 4)
    assert (apart.mode, apart.parked_bytes, apart.parked_in) == ("sequential", 3 * apart.bytes_per_agent, "RAM")
    assert apart.vram_bytes == vram_bytes(PLAIN, ROUND, 10, 2000, "f16")
    assert apart.bytes_per_agent == 2000 * 10 * 4 * 64 * 2 * 2


def test_caches_that_wait_go_to_files_where_ram_is_short() -> None:
    gpu = vram_bytes(PLAIN, ROUND, 10, 2000, "f16")
    needed = ram_bytes(PLAIN, ROUND, 10, 2000, "f16") + 2 * 2000 * cache_bytes_per_token(PLAIN, "f16")
    assert fit(PLAIN, ROUND, Budget(gpu, needed), "f16", 2000, 3).parked_in == "RAM"
    assert fit(PLAIN, ROUND, Budget(gpu, needed - 1), "f16", 2000, 3).parked_in == "files"


def test_the_longest_context_is_the_last_that_fits() -> None:
    budget = Budget(vram_bytes(PLAIN, ROUND, 10, 12_345, "f16"), MUCH)
    assert fit(PLAIN, ROUND, budget, "f16", 2000, 1).longest_context == 12_345
    assert fit(PLAIN, ROUND, Budget(MUCH, MUCH), "f16", 2000, 1).longest_context == PLAIN.context
    without = Budget(0, ram_bytes(PLAIN, ROUND, 0, 23_456, "f16"))
    assert longest_context(PLAIN, ROUND, without, "f16") == 23_456


def test_what_does_not_fit_says_so() -> None:
    needed = ram_bytes(PLAIN, ROUND, 0, 2000, "f16")
    assert fit(PLAIN, ROUND, Budget(0, needed), "f16", 2000, 1).fits
    short = fit(PLAIN, ROUND, Budget(0, needed - 1), "f16", 2000, 1)
    assert (short.fits, short.agents_at_once, short.resident_bytes_cpu) == (False, 0, needed)
    assert longest_context(PLAIN, ROUND, Budget(0, 1000), "f16") == 0


def test_a_quantised_llama_lies_on_six_gigabytes_as_the_formula_says() -> None:
    weights = quantised(LLAMA, "Q4_K_M")
    found = fit(LLAMA, weights, Budget(6_000_000_000, 19_400_000_000), "f16", 4096, 3)
    by_hand = (
        sum(weights.layer_bytes) + weights.output_bytes + 4096 * 131_072 + 512 * (4 * 148_736 + 3 * 4096) + 400_000_000
    )
    assert (found.gpu_layers, found.vram_bytes, found.mode) == (33, by_hand, "sequential")
    assert found.parked_bytes == 2 * 4096 * 131_072
