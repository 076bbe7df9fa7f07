"""What passes is twice what was measured, and what was measured still comes out, on a real model and in two engines."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest

from unspoken.cache import KVCache
from unspoken.engines.fake import FakeEngine
from unspoken.engines.protocol import Engine
from unspoken.engines.transformers import TransformersEngine
from unspoken.manifest import Step
from unspoken.session import Agent
from unspoken.transforms.cast import Cast
from unspoken.trust.spotcheck import spot_check
from unspoken.trust.tolerance import CODING, COMPUTING, MARGIN, Error, own_cells, tolerance, wire_forms

from .tampering import WIRES, changed, neighbours, noisy, read, relabelled, sent

REPORT = (
    "The council met on Tuesday. The northern station is run by Marta. The copper mill belongs to Edgar. "
    "Der Müller kam über die Brücke. Мельница закрыта. 水車小屋は休みです。 def f(x): return x ** 2  # 0123456789"
)


@pytest.fixture(scope="module")
def tiny(tiny_engine: Callable[..., TransformersEngine]) -> TransformersEngine:
    """A model of two layers."""
    return tiny_engine("llama")


def test_a_tolerance_is_that_of_the_coarsest_form_and_computation_a_cache_has_been_in(tiny: TransformersEngine) -> None:
    whole = read(tiny)
    assert tolerance(whole, tiny, 0, 60) == pytest.approx([MARGIN * each for each in COMPUTING["float32"][0]])
    half, again = sent(whole, "bfloat16"), Cast("float32")(sent(whole, "bfloat16"))
    right = [MARGIN * math.hypot(a, b) for a, b in zip(CODING["bfloat16"], COMPUTING["bfloat16"][1], strict=True)]
    assert tolerance(half, tiny, 1, 60) == tolerance(again, tiny, 2, 60) == pytest.approx(right)
    assert tolerance(sent(again, "int4"), tiny, 0, 60).largest > tolerance(half, tiny, 0, 60).largest
    llama_cpp = relabelled(whole, Step("prefill", {"engine": "llamacpp"}))
    assert tolerance(llama_cpp, tiny, 0, 60).largest == pytest.approx(MARGIN * COMPUTING["ggml"][0].largest)


def test_layers_1_and_2_and_those_above_have_their_own(tiny: TransformersEngine) -> None:
    half = sent(read(tiny), "bfloat16")
    found = [tolerance(half, tiny, layer, 60).largest for layer in (0, 1, 2, 3, 29)]
    assert found == sorted(found)
    assert len(set(found)) == 3
    assert (found[1], found[3]) == (found[2], found[4])


def test_the_median_of_a_few_columns_is_not_judged(tiny: TransformersEngine) -> None:
    half = sent(read(tiny), "bfloat16")
    few, enough = tolerance(half, tiny, 0, 15), tolerance(half, tiny, 0, 16)
    assert few.median == few.largest == enough.largest
    assert enough.median < enough.largest


@pytest.mark.parametrize("hostile", ["nonsense", ["int4"], {"a": 1}, None])
def test_a_history_of_nonsense_widens_nothing(tiny: TransformersEngine, hostile: object) -> None:
    whole = read(tiny)
    told = relabelled(whole, Step("pack", {"codec": hostile}), Step("cast", {"dtype": hostile}))
    assert wire_forms(told) == {"float32"}
    assert tolerance(told, tiny, 0, 60) == tolerance(whole, tiny, 0, 60)


def test_what_passes_can_be_given(tiny: TransformersEngine) -> None:
    lying = changed(read(tiny), noisy, [3])  # Off by a tenth.
    assert not spot_check(lying, tiny).passed
    assert not spot_check(lying, tiny, within=0.05).passed
    given = spot_check(lying, tiny, within=0.2)
    assert given.passed
    assert given.tolerance == {0: Error(0.2, 0.2), 1: Error(0.2, 0.2)}


def test_an_engines_own_cells_are_packed_or_not(fake: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    for precision, cells in (("ggml", set()), ("ggml-q8_0", {"q8_0"}), ("ggml-q4_0", {"q4_0"}), ("bfloat16", set())):
        monkeypatch.setattr(fake, "precision", precision, raising=False)
        assert own_cells(fake) == cells
    monkeypatch.setattr(fake, "precision", "ggml-q8_0", raising=False)
    check = spot_check(read(fake), fake)
    assert (check.layers, check.passed) == ((0,), True)
    assert "lose too much to compare deeper layers" in (check.not_checked or "")


def test_what_was_widened_counts_as_bfloat16(tiny: TransformersEngine) -> None:
    whole = read(tiny)
    # As a model that computes in bfloat16 leaves it: nothing but the type of its numbers tells.
    half = KVCache.build(Cast("bfloat16")(whole).layers, whole.spec, token_ids=whole.manifest.token_ids)
    wide = Cast("float32")(half)
    assert wire_forms(wide) == {"float32", "bfloat16"}
    check = spot_check(wide, tiny)
    assert (check.passed, check.tolerance) == (True, spot_check(half, tiny).tolerance)
    assert not spot_check(KVCache.build(wide.layers, whole.spec, token_ids=whole.manifest.token_ids), tiny).passed


@pytest.fixture(scope="module")
def smollm2() -> Engine:
    from unspoken import load_model

    return load_model("smollm2-135m")


@pytest.fixture(scope="module")
def report(smollm2: Engine) -> KVCache:
    return Agent("lyra", smollm2).read(REPORT).cache


@pytest.mark.model
@pytest.mark.parametrize("wire", WIRES)
def test_what_was_measured_comes_out_on_a_real_model(smollm2: Engine, report: KVCache, wire: str) -> None:
    arrived = sent(report, wire)
    check = spot_check(arrived, smollm2, layers=range(30))
    assert check.passed
    # Keys that had their rotation when they were rounded are rounded again without it.
    plain = max(1, 1.6 * (wire in ("bfloat16", "float16")))
    for error in check.errors.values():
        assert error.largest <= max(plain * CODING[wire].largest, COMPUTING["float32"][2].largest)
        assert error.median <= max(plain * CODING[wire].median, COMPUTING["float32"][2].median)
        assert error.largest >= CODING[wire].largest / 4  # No slack to hide a lie in.
    altered = list(range(5, report.columns, 10))
    assert set(spot_check(changed(arrived, neighbours, altered), smollm2).deviating) == set(altered)


@pytest.fixture(scope="module")
def llama_cpp() -> Iterator[Engine]:
    """The same model in llama.cpp."""
    from unspoken.engines.llamacpp.library import candidates

    if next(candidates(), None) is None:
        pytest.skip("there is no llama.cpp library: pip install 'unspoken[llamacpp]'")
    from unspoken import load_model

    opened = load_model("smollm2-135m", engine="llamacpp", threads=1)
    yield opened
    opened.close()


@pytest.mark.model
def test_two_engines_are_no_further_apart_than_was_measured(
    smollm2: Engine, llama_cpp: Engine, report: KVCache
) -> None:
    read_there = Agent("lyra", llama_cpp).read(REPORT).cache
    for wire in WIRES:
        theirs = sent(read_there, wire)
        altered = changed(theirs, neighbours, range(5, report.columns, 10))
        for receiver in (smollm2, llama_cpp):
            assert spot_check(theirs, receiver, layers=range(30)).passed
            assert not spot_check(altered, receiver).passed
    assert spot_check(report, llama_cpp, layers=range(30)).passed
