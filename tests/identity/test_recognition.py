"""Whose cache it is, whatever way it came, on a tiny model; and what is refused rather than judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from unspoken.cache import KVCache
from unspoken.cachefile import read_cache, write_cache
from unspoken.channels.kv import content_columns
from unspoken.engines.fake import FakeEngine
from unspoken.engines.protocol import Piece, Prompt
from unspoken.engines.transformers import TransformersEngine
from unspoken.errors import IncompatibleCache, SpotCheckFailed, UsageError
from unspoken.identity.background import Alarm, Background
from unspoken.identity.cards import Persona
from unspoken.identity.cohort import Cohort
from unspoken.identity.features import content, pooled
from unspoken.identity.profile import Profile
from unspoken.identity.recognition import FEW_COLUMNS, MOST_COLUMNS, Recogniser
from unspoken.manifest import Step
from unspoken.transforms.codecs import codec_named
from unspoken.transforms.rope import Move, RemoveRope
from unspoken.transforms.select import keep

Heard = Callable[[str, str], KVCache]


@pytest.fixture(scope="session")
def known(people: tuple[Persona, ...]) -> tuple[Persona, ...]:
    return people[2:5]


@pytest.fixture(scope="session")
def stranger(people: tuple[Persona, ...]) -> Persona:
    return people[5]


@pytest.fixture(scope="session")
def profiles(
    recogniser: Recogniser, known: tuple[Persona, ...], texts: tuple[str, ...], heard: Heard
) -> tuple[Profile, ...]:
    """Three agents, enrolled with four caches each."""
    return tuple(recogniser.enrol(each.name, [heard(each.card, text) for text in texts[20:24]]) for each in known)


@pytest.fixture(scope="session")
def cache(known: tuple[Persona, ...], texts: tuple[str, ...], heard: Heard) -> KVCache:
    """What the second of them made of a text that nobody was enrolled or learned with."""
    return heard(known[1].card, texts[25])


def test_everybody_is_recognised_and_a_stranger_is_nobody(
    recogniser: Recogniser,
    profiles: Sequence[Profile],
    known: Sequence[Persona],
    stranger: Persona,
    texts: Sequence[str],
    heard: Heard,
) -> None:
    for text in texts[24:26]:
        for each in known:
            found = recogniser.identify(heard(each.card, text), profiles)
            assert found.name == each.name == found.matches[0].name
            assert [match.llr > found.threshold for match in found.matches] == [True, False, False]
            assert found.matches[0].llr > 0
        assert recogniser.identify(heard(stranger.card, text), profiles).name is None


def test_matches_are_those_of_the_background_the_likeliest_first(
    recogniser: Recogniser, background: Background, profiles: Sequence[Profile], cache: KVCache
) -> None:
    found = recogniser.identify(cache, profiles)
    tested = background.signatures(recogniser.observe(cache).deviation)[None]
    expected = background.llrs(tested, torch.stack([each.signature for each in profiles]))[0]
    assert {match.name: match.llr for match in found.matches} == dict(
        zip([each.name for each in profiles], expected.tolist(), strict=True)
    )
    assert [match.llr for match in found.matches] == sorted(expected, reverse=True)
    assert found.threshold == background.info.threshold(3)
    assert (found.columns, found.tokens) == (100, "disclosed")


def test_verifying_is_identifying_among_one(
    recogniser: Recogniser, background: Background, profiles: Sequence[Profile], cache: KVCache
) -> None:
    among_all = {match.name: match.llr for match in recogniser.identify(cache, profiles).matches}
    for profile in profiles:
        alone = recogniser.identify(cache, [profile])
        assert alone.matches[0].llr == pytest.approx(among_all[profile.name], abs=1e-3)
        assert alone.threshold == background.info.threshold(1)
        assert (alone.name == profile.name) == (alone.matches[0].llr >= alone.threshold)


def test_more_profiles_ask_for_more(
    recogniser: Recogniser, background: Background, profiles: Sequence[Profile], cache: KVCache
) -> None:
    alarms = (Alarm(1.0, 0.01), Alarm(1000.0, 0.003))
    strict = Recogniser(
        recogniser.engine, replace(background, info=msgspec.structs.replace(background.info, alarms=alarms))
    )
    bound = [replace(each, info=msgspec.structs.replace(each.info, background=strict.digest)) for each in profiles]
    alone, among_all = strict.identify(cache, bound[1:2]), strict.identify(cache, bound)
    assert (alone.name, alone.threshold) == (bound[1].name, 1.0)
    assert (among_all.name, among_all.threshold) == (None, 1000.0)


def packed(cache: KVCache, wire: str) -> KVCache:
    codec = codec_named(wire)
    return codec.unpack(codec.pack(cache))


CAME: dict[str, tuple[Callable[[KVCache], KVCache], float]] = {
    # The share of the ratio that may change: rounding of float32, or of what it came in.
    "cut out": (content_columns, 1e-4),
    "moved": (Move(300), 1e-3),
    "cut out and moved": (lambda cache: Move(7)(cache.span("content")), 1e-3),
    "position-free": (RemoveRope(), 1e-3),
    "without token ids": (KVCache.without_tokens, 1e-4),
    "position-free without token ids": (lambda cache: RemoveRope()(content_columns(cache)).without_tokens(), 1e-3),
    "bfloat16": (lambda cache: packed(cache, "bfloat16"), 0.02),
    "int8": (lambda cache: packed(content_columns(cache), "int8"), 0.02),
    "int8 without token ids": (lambda cache: packed(content_columns(cache).without_tokens(), "int8"), 0.02),
    "q8_0": (lambda cache: packed(content_columns(cache), "q8_0"), 0.02),
    "by another sender's name": (lambda cache: cache.labelled(sender="vera"), 1e-6),
}


@pytest.mark.parametrize("way", sorted(CAME))
def test_however_a_cache_came_the_decision_is_the_same(
    recogniser: Recogniser, profiles: Sequence[Profile], cache: KVCache, way: str
) -> None:
    bring, share = CAME[way]
    expected, found = recogniser.identify(cache, profiles), recogniser.identify(bring(cache), profiles)
    assert found.name == expected.name is not None
    assert [match.name for match in found.matches] == [match.name for match in expected.matches]
    assert found.columns == expected.columns
    for left, right in zip(found.matches, expected.matches, strict=True):
        assert left.llr == pytest.approx(right.llr, rel=share, abs=share)
    assert found.tokens == ("recovered" if "without token ids" in way else "disclosed")


@pytest.mark.parametrize("wire", ["float32", "int8"])
def test_a_cache_from_a_file_says_the_same(
    recogniser: Recogniser, profiles: Sequence[Profile], cache: KVCache, tmp_path: Path, wire: str
) -> None:
    write_cache(content_columns(cache).without_tokens(), tmp_path / "a.kv.safetensors", wire)
    found = recogniser.identify(read_cache(tmp_path / "a.kv.safetensors"), profiles)
    expected = recogniser.identify(cache, profiles)
    assert (found.name, found.tokens) == (expected.name, "recovered")
    assert found.matches[0].llr == pytest.approx(expected.matches[0].llr, rel=0.02)


def test_a_profile_says_the_same_after_a_file(
    recogniser: Recogniser, profiles: Sequence[Profile], cache: KVCache, tmp_path: Path
) -> None:
    for profile in profiles:
        profile.write(tmp_path / profile.name)
    read = [Profile.read(tmp_path / profile.name) for profile in profiles]
    assert recogniser.identify(cache, read) == recogniser.identify(cache, profiles)


def test_what_is_observed_is_the_difference_from_the_cohort(
    recogniser: Recogniser, reader: TransformersEngine, people: Sequence[Persona], texts: Sequence[str], heard: Heard
) -> None:
    cards, text = [people[0].card, people[1].card], texts[25]
    found = recogniser.observe(heard(people[2].card, text))
    others = torch.stack([pooled(content(heard(card, text))) for card in cards]).mean(dim=0)
    expected = pooled(content(heard(people[2].card, text))) - others
    assert not found.deviation[0].any()
    torch.testing.assert_close(found.deviation[1:], expected[1:], atol=1e-5, rtol=0)


def test_a_text_is_read_by_the_cohort_once_as_long_as_it_is_remembered(
    background: Background, reader: TransformersEngine, known: Sequence[Persona], texts: Sequence[str], heard: Heard
) -> None:
    caches = [heard(known[agent].card, texts[text]) for agent, text in ((0, 24), (1, 24), (0, 25), (1, 24))]
    expected = [Recogniser(reader, background).observe(each).deviation for each in caches]
    counted, fresh = [0], Recogniser(reader, background)

    def read(ids: Sequence[int], *rest: Any) -> torch.Tensor:
        counted[0] += 1
        return Cohort.read(fresh.cohort, ids, *rest)

    object.__setattr__(fresh.cohort, "read", read)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("unspoken.identity.recognition.TEXTS_KEPT", 1)
        for cache, deviation, times in zip(caches, expected, (1, 1, 2, 3), strict=True):
            torch.testing.assert_close(fresh.observe(cache).deviation, deviation, atol=0, rtol=0)
            assert counted == [times]


def test_a_profile_is_made_of_all_its_caches(
    recogniser: Recogniser,
    background: Background,
    profiles: Sequence[Profile],
    known: Sequence[Persona],
    texts: Sequence[str],
    heard: Heard,
) -> None:
    seen = torch.stack([recogniser.observe(heard(known[0].card, text)).deviation for text in texts[20:24]])
    profile = profiles[0]
    torch.testing.assert_close(profile.deviation, seen.mean(dim=0))
    assert profile.spread.numpy() == pytest.approx(np.std(seen.numpy(), axis=0, ddof=1), abs=1e-6)
    mean = background.signatures(seen).mean(dim=0)
    torch.testing.assert_close(profile.signature, mean / mean.norm())
    info = profile.info
    assert (info.caches, info.columns, info.layers) == (4, 400, (1, 2))
    assert (info.background, info.spec) == (background.digest(), background.info.spec)
    assert (info.calibration, info.error_rates) == (background.info.calibration, background.info.error_rates)


def test_a_card_enrols_as_its_own_readings_do(
    recogniser: Recogniser, reader: TransformersEngine, known: Sequence[Persona], cache: KVCache
) -> None:
    from unspoken.identity.passages import passages

    prefix = reader.prefill(reader.frame(known[1].card).before)
    read = [reader.prefill(Prompt((Piece("content", reader.encode(each)),)), prefix) for each in passages()[:2]]
    by_card, by_caches = recogniser.enrol_card("one", known[1].card, 2), recogniser.enrol("two", read)
    torch.testing.assert_close(by_card.signature, by_caches.signature, atol=1e-4, rtol=0)
    assert by_card.info.columns == by_caches.info.columns == 2 * MOST_COLUMNS
    found = recogniser.identify(cache, [by_card, recogniser.enrol_card("other", known[2].card, 2)])
    assert found.name == "one"


def test_of_a_long_text_only_the_beginning_is_looked_at(
    recogniser: Recogniser, known: Sequence[Persona], heard: Heard
) -> None:
    from unspoken.identity.passages import passages

    long, short = (heard(known[0].card, passages()[25][:count]) for count in (300, MOST_COLUMNS))
    found = recogniser.observe(long)
    assert found.columns == MOST_COLUMNS
    torch.testing.assert_close(found.deviation, recogniser.observe(short).deviation, atol=1e-5, rtol=0)


def test_a_cache_with_another_texts_token_ids_is_refused(
    recogniser: Recogniser, cache: KVCache, texts: Sequence[str], reader: TransformersEngine
) -> None:
    honest = content_columns(cache)
    for ids in (reader.encode(texts[3]), (3,) * 100, (*reader.encode(texts[25])[:99], 300), (-1,) * 100):
        lying = KVCache(honest.layers, msgspec.structs.replace(honest.manifest, token_ids=ids))
        with pytest.raises((SpotCheckFailed, UsageError), match=r"columns are not what|names the token") as told:
            recogniser.observe(lying)
        assert "Do not use" in told.value.hint


def test_one_wrong_token_is_enough(recogniser: Recogniser, cache: KVCache) -> None:
    """Columns are compared one by one: in the mean of a text, a few others hardly show."""
    honest = content_columns(cache)
    ids = honest.manifest.token_ids or ()
    lying = KVCache(honest.layers, msgspec.structs.replace(honest.manifest, token_ids=(*ids[:50], 7, *ids[51:])))
    with pytest.raises(SpotCheckFailed, match="1 of 100 columns"):
        recogniser.observe(lying)


def test_rounding_is_no_lie(recogniser: Recogniser, cache: KVCache) -> None:
    coarse = packed(content_columns(cache), "int4")
    assert recogniser.observe(coarse).tokens == "disclosed"


def first(cache: KVCache, count: int) -> KVCache:
    return content_columns(cache).slice(0, count)


def kept(cache: KVCache, *columns: Sequence[int]) -> KVCache:
    chosen = [torch.tensor(each, dtype=torch.int64) for each in columns]
    return keep(content_columns(cache), chosen, Step("select.test"))


HOLE = [*range(40), *range(45, 100)]
BROKEN: dict[str, tuple[Callable[[KVCache], KVCache], str]] = {
    "a hole": (lambda cache: kept(cache, HOLE, HOLE, HOLE), "lacks some columns"),
    "a hole in one layer": (lambda cache: kept(cache, range(95), range(95), HOLE), "lacks some columns"),
    "one layer shorter": (lambda cache: kept(cache, range(95), range(95), range(94)), "lacks some columns"),
    "one layer later": (lambda cache: kept(cache, range(95), range(95), range(5, 100)), "lacks some columns"),
    "one layer empty": (lambda cache: kept(cache, range(95), range(95), []), "lacks some columns"),
    "too short": (lambda cache: first(cache, FEW_COLUMNS - 1), "15 content columns, too few"),
    "no content": (lambda cache: cache.slice(0, 20), "no content columns"),
    "a layer missing": (lambda cache: KVCache.build(cache.layers[:2], cache.spec), "lacks 1 of 3 layers"),
}


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_a_broken_cache_is_refused(
    recogniser: Recogniser, profiles: Sequence[Profile], cache: KVCache, name: str
) -> None:
    spoil, problem = BROKEN[name]
    for judge in (lambda broken: recogniser.identify(broken, profiles), lambda broken: recogniser.enrol("a", [broken])):
        with pytest.raises(UsageError, match=problem):
            judge(spoil(cache))


def test_the_fewest_columns_are_enough(recogniser: Recogniser, cache: KVCache) -> None:
    assert recogniser.observe(first(cache, FEW_COLUMNS)).columns == FEW_COLUMNS


def test_numbers_that_are_none_are_never_evidence(
    recogniser: Recogniser, profiles: Sequence[Profile], cache: KVCache
) -> None:
    for layer, problem in ((0, "columns are not what"), (2, "not finite")):
        spoilt = content_columns(cache).rebuilt(
            Step("spoil"),
            lambda each, at=layer: (  # type: ignore[misc]
                each.keys, torch.full_like(each.values, torch.nan) if each.index == at else each.values, each.positions
            ),
        )  # fmt: skip
        with pytest.raises((SpotCheckFailed, UsageError), match=problem):
            recogniser.identify(spoilt, profiles)


def test_another_models_cache_or_profile_is_refused(
    recogniser: Recogniser, profiles: Sequence[Profile], cache: KVCache, fake: FakeEngine
) -> None:
    foreign = fake.prefill(Prompt((Piece("content", tuple(range(40))),)))
    with pytest.raises(IncompatibleCache):
        recogniser.identify(foreign, profiles)
    with pytest.raises(IncompatibleCache):
        recogniser.enrol("a", [foreign])
    other = replace(profiles[1], info=msgspec.structs.replace(profiles[1].info, spec=fake.spec))
    with pytest.raises(IncompatibleCache):
        recogniser.identify(cache, [profiles[0], other])


def test_a_profile_of_another_background_is_refused(
    recogniser: Recogniser, background: Background, profiles: Sequence[Profile], cache: KVCache
) -> None:
    changed = replace(background, info=msgspec.structs.replace(background.info, caches=1))
    with pytest.raises(UsageError, match="they do not measure alike"):
        Recogniser(recogniser.engine, changed).identify(cache, profiles)


def test_a_signature_of_another_length_is_refused(
    recogniser: Recogniser, profiles: Sequence[Profile], cache: KVCache
) -> None:
    short = replace(profiles[0], signature=profiles[0].signature[:-1])
    for given in ([short], [profiles[1], short]):
        with pytest.raises(UsageError, match=f"The signature of {short.name} has"):
            recogniser.identify(cache, given)


def test_nothing_to_enrol_or_to_compare_with_is_refused(recogniser: Recogniser, cache: KVCache) -> None:
    with pytest.raises(UsageError, match="no cache to enrol with"):
        recogniser.enrol("a", [])
    with pytest.raises(UsageError, match="no profile to compare the cache with"):
        recogniser.identify(cache, [])
