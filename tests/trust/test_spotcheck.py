"""Computing columns again tells honest caches from others, and says what it could not look at."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable
from fractions import Fraction

import msgspec
import pytest
import torch

from unspoken.cache import KVCache, KVLayer
from unspoken.engines.fake import FakeEngine
from unspoken.engines.protocol import Piece, Prompt
from unspoken.engines.transformers import TransformersEngine
from unspoken.errors import IncompatibleCache, SpotCheckFailed, UsageError
from unspoken.manifest import Step
from unspoken.transforms.rope import Move, RemoveRope
from unspoken.transforms.select import keep
from unspoken.trust.spotcheck import (
    COLUMNS,
    SpotCheck,
    column_errors,
    report,
    require_passed,
    spot_check,
)

from .tampering import (
    FINE,
    WIRES,
    Lie,
    changed,
    cut,
    keys_only,
    louder,
    neighbours,
    noisy,
    read,
    relabelled,
    sent,
    text,
    tokens,
)

LIES: dict[str, Lie] = {"neighbours": neighbours, "keys only": keys_only, "louder": louder, "noisy": noisy}
SMALL = ("louder", "noisy")


@pytest.fixture(scope="module")
def tiny(tiny_engine: Callable[..., TransformersEngine]) -> TransformersEngine:
    """A model of two layers."""
    return tiny_engine("llama")


@pytest.fixture(scope="module")
def tall(tiny_engine: Callable[..., TransformersEngine]) -> TransformersEngine:
    """A model of eight layers."""
    return tiny_engine("llama", num_hidden_layers=8)


def test_an_error_is_the_larger_of_keys_and_values_as_a_share_of_the_length_or_the_median_length() -> None:
    # One head of two channels; the lengths computed again are 5, 1 and 10, so their median is 5.
    right = torch.tensor([[[3.0, 4.0], [1.0, 0.0], [0.0, 10.0]]])
    keys = right + torch.tensor([[[0.0, 0.0], [0.0, 1.0], [3.0, 4.0]]])  # Off by 0, 1 and 5.
    values = right + torch.tensor([[[0.5, 0.0], [0.0, 0.0], [0.0, 1.0]]])  # Off by 0.5, 0 and 1.
    own = KVLayer(0, right, right, torch.arange(3, dtype=torch.int32))
    assert column_errors(keys, values, own).tolist() == pytest.approx([0.5 / 5, 1 / 5, 5 / 10])


@pytest.mark.parametrize(("held", "altered", "compared"), [(8, 2, 3), (7, 1, 4), (6, 4, 2), (6, 5, 2), (5, 2, 5)])
def test_the_probability_of_missing_all_is_that_of_trying_every_choice(held: int, altered: int, compared: int) -> None:
    choices = list(itertools.combinations(range(held), compared))
    missed = Fraction(sum(min(choice) >= altered for choice in choices), len(choices))
    check = SpotCheck(compared, held, (), {}, {}, (), None)
    assert check.miss_probability(altered / held) == pytest.approx(float(missed))


def test_the_default_finds_a_tenth_of_altered_columns_99_times_in_100_however_many_there_are() -> None:
    for held in (1, 9, 10, 48, 49, 100, 333, 5000):
        assert SpotCheck(min(COLUMNS, held), held, (), {}, {}, (), None).miss_probability(0.1) <= 0.01
    assert SpotCheck(44 - 1, 10**6, (), {}, {}, (), None).miss_probability(0.1) > 0.01
    assert SpotCheck(0, 9, (), {}, {}, (), "nothing").miss_probability(0.5) == 1.0
    for share in (0.0, -0.1, 1.01):
        with pytest.raises(UsageError, match="is none"):
            SpotCheck(3, 9, (), {}, {}, (), None).miss_probability(share)


@pytest.mark.parametrize("wire", WIRES)
def test_honest_caches_pass_in_every_wire_form_with_all_their_layers(engine: TransformersEngine, wire: str) -> None:
    whole = sent(read(engine, 70), wire)
    for cache in (whole, RemoveRope()(whole), Move(200)(whole)):
        check = spot_check(cache, engine)
        assert (check.passed, check.layers, check.columns, check.held) == (True, (0, 1), 70, 70)
        assert check.miss_probability(0.001) == 0
    parts = spot_check(sent(cut(engine), wire), engine)
    assert (parts.passed, parts.layers, parts.columns) == (True, (0,), COLUMNS)
    assert "did not travel" in (parts.not_checked or "")


@pytest.mark.parametrize("wire", WIRES)
def test_of_300_honest_caches_none_is_refused(tiny: TransformersEngine, wire: str) -> None:
    many = sent(cut(tiny, 420, 5), wire)
    for seed in range(300):
        start = random.Random(seed).randrange(360)
        check = spot_check(many.slice(start, start + 60), tiny, seed=seed)
        assert check.passed, (seed, check)


@pytest.mark.parametrize(("columns", "fewest", "most"), [(COLUMNS, 297, 300), (8, 0, 200)])
def test_of_300_caches_with_a_tenth_altered_as_many_are_found_as_is_said(
    tiny: TransformersEngine, columns: int, fewest: int, most: int
) -> None:
    many, found, missed = sent(cut(tiny, 480, 6), "bfloat16"), 0, []
    for seed in range(300):
        draw = random.Random(1000 + seed)
        count = draw.randrange(50, 300)
        honest = many.slice(start := draw.randrange(480 - count), start + count)
        altered = draw.sample(range(count), round(count / 10))
        check = spot_check(changed(honest, neighbours, altered), tiny, columns=columns, seed=seed)
        assert set(check.deviating) <= set(altered)  # Nothing honest is blamed.
        found += not check.passed
        missed.append(check.miss_probability(0.1))
    assert fewest <= found <= most
    spread = sum(each * (1 - each) for each in missed) ** 0.5
    assert abs(300 - found - sum(missed)) <= 4 * spread


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("wire", WIRES)
def test_lies_are_found_down_to_what_the_wire_form_hides(tiny: TransformersEngine, wire: str, lie: str) -> None:
    altered = (3, 17, 44)
    check = spot_check(changed(sent(read(tiny), wire), LIES[lie], altered), tiny)
    if wire in FINE or lie not in SMALL:
        assert check.deviating == altered
    else:  # What 4 bits do to a column is as large: such a lie escapes.
        assert check.passed


@pytest.mark.parametrize("wire", FINE)
def test_small_changes_of_most_columns_are_found_by_the_median(tall: TransformersEngine, wire: str) -> None:
    check = spot_check(changed(sent(read(tall), wire), louder, range(60), [2]), tall)
    assert check.shifted == (2,)
    assert not check.passed
    assert bool(check.deviating) == (wire in ("float32", "float16"))  # The others hide it in a single column.
    with pytest.raises(SpotCheckFailed, match="in layer 2 the"):
        require_passed(check)


def test_a_column_of_the_same_token_from_another_context_shows_above_layer_0_only(tall: TransformersEngine) -> None:
    mine = read(tall, 60, 1)
    # The second half of the text behind another first half.
    theirs = tall.prefill(Prompt((Piece("content", (*tokens(30, 2), *tokens(60, 1)[30:])),)))

    def from_there(layer: KVLayer, columns: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        source = theirs.layers[layer.index]
        return source.keys[:, columns], source.values[:, columns]

    check = spot_check(changed(mine, from_there, [50]), tall, layers=range(8))
    assert check.deviating == (50,)
    assert check.errors[0].largest <= check.tolerance[0].largest
    assert all(check.errors[at].largest > check.tolerance[at].largest for at in range(1, 8))


def test_tokens_of_another_text_beside_the_columns_are_a_lie(tiny: TransformersEngine) -> None:
    for cache in (read(tiny), cut(tiny)):
        lying = KVCache(cache.layers, msgspec.structs.replace(cache.manifest, token_ids=tokens(60, 9)))
        check = spot_check(lying, tiny)
        assert len(check.deviating) > 40
        with pytest.raises(SpotCheckFailed, match="not what the model makes of the tokens"):
            require_passed(check)


def test_a_known_prefix_opens_the_deeper_layers(tall: TransformersEngine) -> None:
    before = tall.prefill(text(10, 70))
    cache = RemoveRope()(tall.prefill(text(60, 1), before).slice(10, 70))
    assert spot_check(cache, tall).layers == (0,)
    known = spot_check(cache, tall, prefix=before)
    assert (known.passed, known.layers, known.columns, known.not_checked) == (True, (0, 1, 2), 60, None)
    lying = changed(cache, neighbours, [20], [2])
    assert spot_check(lying, tall, columns=None).passed
    assert spot_check(lying, tall, prefix=before).deviating == (20,)
    for other in (tall.prefill(text(9, 70)), tall.prefill(text(11, 70))):
        assert "do not follow the prefix" in (spot_check(cache, tall, prefix=other).not_checked or "")
    assert not spot_check(cache, tall, prefix=tall.prefill(text(10, 71))).passed


@pytest.mark.parametrize("deep", [False, True])
def test_a_lie_in_a_deep_layer_is_found_if_the_random_layer_is_as_deep(tall: TransformersEngine, deep: bool) -> None:
    lying = changed(read(tall), neighbours, [20], [5])
    checks = [spot_check(lying, tall, deep=deep, seed=seed) for seed in range(12)]
    assert all(check.passed == (max(check.layers) < 5) for check in checks)
    assert {max(check.layers) for check in checks} == ({3, 4, 5, 6, 7} if deep else {2})
    assert all(check.layers == tuple(range(max(check.layers) + 1)) for check in checks)


def test_what_cannot_be_compared_is_said_and_refused_where_it_is_needed(tiny: TransformersEngine) -> None:
    whole = read(tiny)
    apart = keep(whole, [torch.arange(5), torch.arange(1, 6)], Step("select.test"))
    gaps = keep(whole, [torch.tensor([0, 1, 5, 6])] * 2, Step("select.test"))
    claimed = relabelled(whole, Step("slice", {"start": 0}))
    for cache, why, layers in (
        (whole.without_tokens(), "not disclosed", ()),
        (apart, "not disclosed", ()),
        (gaps, "missing", (0,)),
        (claimed, "did not travel", (0,)),
    ):
        check = spot_check(cache, tiny)
        assert why in (check.not_checked or "")
        assert (check.layers, check.passed) == (layers, bool(layers))
        with pytest.raises(SpotCheckFailed, match=f"from layer {len(layers)} on, could not be computed again"):
            require_passed(check, check.asked)
    assert check.asked == (0, 1)
    require_passed(spot_check(whole, tiny), (0, 1))
    with pytest.raises(SpotCheckFailed, match="nobody asked for them"):
        require_passed(spot_check(whole, tiny, layers=(0,)), (1,))
    upper = KVCache.build(whole.layers[1:], whole.spec, token_ids=whole.manifest.token_ids)
    assert spot_check(upper, tiny).layers == (1,)
    assert not spot_check(gaps, tiny, layers=(1,)).passed


def test_what_cannot_be_asked_is_refused(tiny: TransformersEngine, fake: FakeEngine) -> None:
    whole = read(tiny)
    for layers in ((), (-1,), (7,)):
        with pytest.raises(UsageError):
            spot_check(whole, tiny, layers=layers)
    with pytest.raises(UsageError, match="one column or more"):
        spot_check(whole, tiny, columns=0)
    with pytest.raises(IncompatibleCache):
        spot_check(whole, fake)
    unknown = KVCache(whole.layers, msgspec.structs.replace(whole.manifest, token_ids=(*tokens(59, 0), 10**6)))
    with pytest.raises(IncompatibleCache, match="names the token 1000000"):
        spot_check(unknown, tiny)


def test_numbers_that_are_none_do_not_pass(tiny: TransformersEngine) -> None:
    def broken(layer: KVLayer, columns: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return layer.keys[:, columns] * torch.nan, layer.values[:, columns]

    check = spot_check(changed(read(tiny), broken, [4]), tiny)
    assert check.deviating == (4,)
    assert report(check)["errors"]["0"]["largest"] is None  # JSON has no such number.


def test_nobody_can_foresee_which_columns_are_looked_at(
    tiny: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    class Watched(random.SystemRandom):
        def sample(self, *given: object, **more: object) -> list[int]:
            drawn.append(super().sample(*given, **more))  # type: ignore[arg-type]
            return drawn[-1]

    monkeypatch.setattr(random, "SystemRandom", Watched)
    for _ in range(2):
        assert spot_check(cut(tiny, 400), tiny).columns == COLUMNS
    assert len(drawn) == 2
    assert sorted(drawn[0]) != sorted(drawn[1])  # The same twice once in 10 ** 63 times.


def test_a_check_is_told_as_plain_data(tiny: TransformersEngine) -> None:
    told = report(spot_check(changed(cut(tiny, 400), neighbours, range(400)), tiny, columns=20))
    assert json.loads(json.dumps(told)) == told
    assert (told["passed"], told["columns"], told["held"], len(told["deviating"])) == (False, 20, 400, 20)
    assert told["errors"]["0"]["largest"] > told["tolerance"]["0"]["largest"]
    assert told["miss_probability"] == {
        # One column after the other is drawn among those that are left.
        "0.01": pytest.approx(math.prod((396 - drawn) / (400 - drawn) for drawn in range(20))),
        "0.1": pytest.approx(math.prod((360 - drawn) / (400 - drawn) for drawn in range(20))),
    }
    assert report(spot_check(read(tiny), tiny), shares=(0.5,))["miss_probability"] == {"0.5": 0.0}
