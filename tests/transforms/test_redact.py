"""What is taken out is gone, what stays is untouched; and what stays still tells of what is gone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unspoken.cache import KVCache
from unspoken.cachefile import read_cache, write_cache
from unspoken.engines.fake import FakeEngine
from unspoken.engines.protocol import Piece, Prompt
from unspoken.engines.transformers import TransformersEngine
from unspoken.errors import UsageError
from unspoken.manifest import SpanKind, Step
from unspoken.session import Agent
from unspoken.transforms import TRANSFORMS
from unspoken.transforms.redact import Redact
from unspoken.transforms.rope import RemoveRope
from unspoken.transforms.select import keep

KINDS: tuple[SpanKind, ...] = ("sink", "system", "content", "thought", "template")
SECRET = "The door code is 4711."
DOCUMENT = "The old mill is run by Anna."


def _prompt(runs: list[tuple[SpanKind, int]]) -> Prompt:
    """A prompt of some runs of columns, of which no token stands twice."""
    ids = iter(range(64))
    return Prompt(tuple(Piece(kind, tuple(next(ids) for _ in range(count))) for kind, count in runs))


@given(
    st.lists(st.tuples(st.sampled_from(KINDS), st.integers(1, 6)), min_size=1, max_size=6),
    st.lists(st.sampled_from(KINDS), max_size=3),
    st.integers(0, 30),
    st.integers(1, 5),
)
def test_what_is_named_goes_and_the_rest_stays_as_it_was(
    runs: list[tuple[SpanKind, int]], kinds: list[SpanKind], start: int, length: int
) -> None:
    prompt = _prompt(runs)
    cache = FakeEngine().prefill(prompt)
    ranges = ((start, start + length),) if start + length <= cache.columns else ()
    labels = [piece.kind for piece in prompt.pieces for _ in piece.token_ids]
    gone = [label in kinds or any(a <= at < b for a, b in ranges) for at, label in enumerate(labels)]
    left = [at for at, each in enumerate(gone) if not each]
    change = Redact(tuple(kinds), ranges)
    assert change.removed(cache).tolist() == gone
    if not left or all(not each for each in gone):
        with pytest.raises(UsageError, match="Nothing would be"):
            change(cache)
        return
    kept = change(cache)
    assert kept.manifest.token_ids == tuple(prompt.token_ids[at] for at in left)
    for mine, whole in zip(kept.layers, cache.layers, strict=True):
        assert mine.positions.tolist() == left  # As they were: what is gone leaves a gap.
        assert torch.equal(mine.keys, whole.keys[:, left])
        assert torch.equal(mine.values, whole.values[:, left])
    told = ["" for _ in left]
    for span in kept.manifest.spans:
        told[span.start : span.stop] = [span.kind] * (span.stop - span.start)
    assert told == [labels[at] for at in left]


def test_a_files_redacted_form_holds_nothing_of_it(fake: FakeEngine, tmp_path: Path) -> None:
    cache = Agent("lyra", fake, SECRET).read(DOCUMENT).cache
    write_cache(Redact(("system",))(cache), tmp_path / "r.kv.safetensors")
    arrived = read_cache(tmp_path / "r.kv.safetensors")
    system = next(span for span in cache.manifest.spans if span.kind == "system")
    assert fake.decode((cache.manifest.token_ids or ())[system.start : system.stop]) == SECRET
    assert SECRET not in fake.decode(arrived.manifest.token_ids or ())
    assert DOCUMENT in fake.decode(arrived.manifest.token_ids or ())
    assert "system" not in {span.kind for span in arrived.manifest.spans}
    raw = (tmp_path / "r.kv.safetensors").read_bytes()
    for layer in cache.layers:
        for part in (layer.keys, layer.values):
            columns = [part[:, at].contiguous().numpy().tobytes() for at in range(system.start, system.stop)]
            assert not any(each in raw for each in columns)
    content = next(span for span in cache.manifest.spans if span.kind == "content")
    assert cache.layers[0].keys[0, content.start : content.stop].contiguous().numpy().tobytes() in raw


def test_what_stays_was_computed_with_it_in_view_and_tells_a_right_guess(
    tiny_engine: Callable[..., TransformersEngine],
) -> None:
    engine = tiny_engine("llama")
    codes = [f"The door code is {code}." for code in (1234, 4711, 4712, 9999)]

    def kept(card: str) -> KVCache:
        return RemoveRope()(Redact(("sink", "system", "template"))(Agent("lyra", engine, card).read(DOCUMENT).cache))

    redacted = kept(codes[1])
    off = [float((kept(guess).layers[1].values - redacted.layers[1].values).norm()) for guess in codes]
    assert off[1] == 0
    assert min(off[0], *off[2:]) > 1e-3
    # Layer 0 knows its own token only.
    assert torch.equal(kept(codes[0]).layers[0].values, redacted.layers[0].values)


def test_a_redacted_cache_can_be_gone_on_from(fake: FakeEngine) -> None:
    agent = Agent("lyra", fake, SECRET)
    kept = Redact(("system",))(agent.read(DOCUMENT).cache)
    assert kept.next_position == agent.read(DOCUMENT).cache.next_position
    assert agent.ask_cache("Who runs the old mill?", kept).text == "Anna"


def test_what_cannot_be_meant_is_refused(fake: FakeEngine) -> None:
    cache = Agent("lyra", fake).read(DOCUMENT).cache
    with pytest.raises(UsageError, match="no 'secret' columns"):
        Redact(("secret",))
    for start, stop in ((3, 3), (4, 2), (-1, 2)):
        with pytest.raises(UsageError, match="no range of columns"):
            Redact((), ((start, stop),))
    with pytest.raises(UsageError, match="not all there"):
        Redact((), ((0, cache.columns + 1),))(cache)
    with pytest.raises(UsageError, match=r"no column of kind thought, its columns are .*content"):
        Redact(("thought",))(cache)
    with pytest.raises(UsageError, match="none given"):
        Redact()(cache)
    with pytest.raises(UsageError, match="not labelled"):
        Redact(("system",))(cache.labelled(spans=()))
    with pytest.raises(UsageError, match="Nothing would be left"):
        Redact((), ((0, cache.columns),))(cache)
    sets = [torch.arange(at, at + 5) for at in range(len(cache.layers))]
    with pytest.raises(UsageError, match="different columns"):
        Redact(("system",))(keep(cache, sets, Step("select.test")))


def test_it_is_in_the_registry_and_the_history_says_what_was_done(fake: FakeEngine) -> None:
    made = TRANSFORMS.load("redact")(kinds=("system",))
    step = made(Agent("lyra", fake).read(DOCUMENT).cache).manifest.lineage[-1]
    assert step == Step("redact", {"kinds": ["system"], "ranges": []})
