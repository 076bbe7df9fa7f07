"""A cache goes from one engine into another only after the two were measured against each other, and once is enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import msgspec
import pytest

from unspoken.cache import DTYPES, KVCache
from unspoken.channels.kv import received
from unspoken.engines import gate
from unspoken.engines.fake import FakeEngine
from unspoken.engines.gate import BOUNDS, DIVERGENCES, ensure_pair, measure_pair, require_pair
from unspoken.engines.protocol import Engine, Prompt
from unspoken.errors import GateFailed, IncompatibleCache
from unspoken.session import Agent, Session
from unspoken.transforms.rope import Move

QUESTION = "Who runs the old mill?"
REPORT = "The old mill is run by Anna. Bob left the harbour on Monday."


class Other(FakeEngine):
    """The same model in an engine of another name."""

    name = "other"


class Turns(Other):
    """An engine whose keys are turned one position too far."""

    def prefill(self, prompt: Prompt, past: KVCache | None = None, *, start: int | None = None) -> KVCache:
        made = super().prefill(prompt, past, start=start)
        off = Move(int(made.positions.min()) + 1)(made)
        layers = (replace(mine, keys=far.keys) for mine, far in zip(made.layers, off.layers, strict=True))
        return KVCache(tuple(layers), made.manifest)


class Mixes(Other):
    """An engine whose values stand in another order."""

    def prefill(self, prompt: Prompt, past: KVCache | None = None, *, start: int | None = None) -> KVCache:
        made = super().prefill(prompt, past, start=start)
        return KVCache(tuple(replace(each, values=each.values.flip(-1)) for each in made.layers), made.manifest)


class NoNumbers(Other):
    """An engine whose columns hold no number in one place."""

    def prefill(self, prompt: Prompt, past: KVCache | None = None, *, start: int | None = None) -> KVCache:
        made = super().prefill(prompt, past, start=start)
        made.layers[0].values[0, 0, 0] = float("nan")
        return made


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what this process measured, and what a test measures with it."""
    monkeypatch.setattr(gate, "_PAIRS", {})


def never() -> Engine:
    """The other engine, where it must not be opened."""
    raise AssertionError("the other engine was opened")


def test_two_engines_of_one_model_make_a_pair(fake: FakeEngine) -> None:
    for sender, receiver in ((Other(), fake), (fake, Other())):
        found = measure_pair(sender, receiver)
        assert found.passed
        assert found.checks == {"continue": 0.0, "moved": 0.0}
        assert (found.bound, found.divergence_bound) == (BOUNDS["float32"], DIVERGENCES["float32"])


@pytest.mark.parametrize("one", sorted(DTYPES))
@pytest.mark.parametrize("other", sorted(DTYPES))
def test_the_coarser_of_two_types_sets_the_bounds(one: str, other: str) -> None:
    found = measure_pair(Other(dtype=one), FakeEngine(dtype=other))
    assert found.passed
    assert found.bound == max(BOUNDS[one], BOUNDS[other])
    assert found.divergence_bound <= max(DIVERGENCES[one], DIVERGENCES[other])


def test_the_order_of_precisions_is_that_of_their_bounds(fake: FakeEngine) -> None:
    for precision, bound in BOUNDS.items():
        other = Other()
        other.precision = precision
        assert measure_pair(other, fake).bound == measure_pair(fake, other).bound == bound
        assert DIVERGENCES.keys() == BOUNDS.keys()


@pytest.mark.parametrize("wrong", [Turns, Mixes, NoNumbers])
def test_a_sender_that_does_something_else_is_found_and_refused(
    wrong: type[Other], fake: FakeEngine, tmp_path: Path
) -> None:
    found = measure_pair(wrong(), fake)
    assert not found.passed
    assert min(found.checks.values()) > 100 * found.bound
    with pytest.raises(
        GateFailed, match="The fake engine does not go on from caches of 'fake-0' made by other"
    ) as error:
        ensure_pair("other", fake, wrong, tmp_path)
    assert f"continue {found.checks['continue']:.2e}" in error.value.problem
    assert "at most 1e-04 is allowed" in error.value.problem
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(GateFailed, match="is not known"):
        require_pair("other", fake)


def test_two_models_make_no_pair(fake: FakeEngine, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleCache, match="weights is"):
        ensure_pair("other", fake, lambda: Other(seed=1), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_one_engine_needs_no_pair(fake: FakeEngine) -> None:
    assert ensure_pair("fake", fake, never) is None
    require_pair("fake", fake)


def test_a_pair_is_measured_once_in_a_process(fake: FakeEngine) -> None:
    first = ensure_pair("other", fake, Other)
    assert first is not None
    assert first.passed
    assert ensure_pair("other", fake, never) == first
    assert ensure_pair("other", FakeEngine(), never) == first
    require_pair("other", fake)


def test_a_pair_is_remembered_between_processes(
    fake: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = tmp_path / "not" / "there" / "yet"
    first = ensure_pair("other", fake, Other, memory)
    monkeypatch.setattr(gate, "_PAIRS", {})
    assert ensure_pair("other", fake, never, memory) == first
    require_pair("other", fake)
    (kept,) = memory.iterdir()
    kept.write_bytes(b"damaged")
    monkeypatch.setattr(gate, "_PAIRS", {})
    assert ensure_pair("other", fake, Other, memory) == first
    kept.write_bytes(msgspec.json.encode(msgspec.structs.replace(first, passed=False)))
    monkeypatch.setattr(gate, "_PAIRS", {})
    with pytest.raises(GateFailed, match="does not go on from caches"):
        ensure_pair("other", fake, never, memory)


def _version(engine: FakeEngine) -> None:
    engine.version = "2"


def _precision(engine: FakeEngine) -> None:
    engine.precision = "bfloat16"


def _tokenizer(engine: FakeEngine) -> None:
    engine._spec = msgspec.structs.replace(engine.spec, tokenizer="another")


@pytest.mark.parametrize("change", [_version, _precision, _tokenizer])
def test_a_pair_holds_for_no_other_receiver(change: Callable[[FakeEngine], None], fake: FakeEngine) -> None:
    ensure_pair("other", fake, Other)
    changed = FakeEngine()
    change(changed)
    with pytest.raises(GateFailed, match="Whether fake goes on from caches of 'fake-0' made by other is not known"):
        require_pair("other", changed)
    with pytest.raises(GateFailed, match="made by a third is not known") as error:
        require_pair("a third", fake)
    assert "ensure_pair" in error.value.hint


def test_a_pair_is_good_for_one_direction(fake: FakeEngine) -> None:
    ensure_pair("other", fake, Other)
    with pytest.raises(GateFailed, match="Whether other goes on"):
        require_pair("fake", Other())


@pytest.mark.parametrize("channel", ["kv", "kv-continue"])
def test_a_session_measures_its_two_engines_once_and_answers(channel: str, fake: FakeEngine) -> None:
    lyra, vera = Agent("lyra", Other()), Agent("vera", fake)
    with mock.patch.object(gate, "measure_pair", side_effect=measure_pair) as measured:
        for _ in range(2):
            reply = Session(lyra, vera, channel=channel).ask("vera", QUESTION, about=REPORT)
            assert "Anna" in reply.text
            assert {step.args["engine"] for step in reply.delivery.lineage if step.op == "prefill"} >= {"other"}
    measured.assert_called_once()


@pytest.mark.parametrize("channel", ["kv", "kv-continue"])
def test_a_session_with_an_engine_that_does_something_else_is_refused(channel: str, fake: FakeEngine) -> None:
    lyra, vera = Agent("lyra", Turns()), Agent("vera", fake)
    with pytest.raises(GateFailed, match="does not go on from caches of 'fake-0' made by other"):
        Session(lyra, vera, channel=channel).ask("vera", QUESTION, about=REPORT)


def test_a_cache_that_came_from_elsewhere_is_refused_until_its_engine_was_measured(fake: FakeEngine) -> None:
    from unspoken.channels.kv import content_columns

    read = Agent("lyra", Other()).read(REPORT).cache
    vera = Agent("vera", fake)
    for cache in (read, content_columns(read)):
        with pytest.raises(GateFailed, match="is not known"):
            received(cache, vera)
    ensure_pair("other", fake, Other)
    for cache in (read, content_columns(read)):
        assert "Anna" in vera.ask_cache(QUESTION, cache, new_tokens=16).text


def test_a_cache_grown_by_two_engines_needs_both_pairs(fake: FakeEngine) -> None:
    class Third(Other):
        name = "third"

    first = Other().prefill(Prompt(Agent("lyra", fake).frame.before.pieces))
    grown = Third().prefill(first_prompt(fake), first)
    assert grown.manifest.engines() == {"other", "third"}
    ensure_pair("other", fake, Other)
    with pytest.raises(GateFailed, match="made by third is not known"):
        received(grown, Agent("vera", fake))
    ensure_pair("third", fake, Third)
    assert received(grown, Agent("vera", fake)).tokens_skipped == grown.columns


def first_prompt(engine: Engine) -> Prompt:
    """A text as content."""
    from unspoken.engines.protocol import Piece

    return Prompt((Piece("content", engine.encode(REPORT)),))
