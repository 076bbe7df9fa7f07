"""The gate lets sound engines pass, refuses broken ones with their numbers, and remembers only what it measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import pytest
import torch
from torch import Tensor, nn

from unspoken.cache import DTYPES, KVCache, KVLayer
from unspoken.engines import gate
from unspoken.engines import transformers as module
from unspoken.engines.batch import Layout, Row, lay_out
from unspoken.engines.fake import FakeEngine
from unspoken.engines.gate import BOUNDS, GateResult, ensure, measure
from unspoken.engines.protocol import Engine, Frame, Generation, Limits, Prompt, Turn
from unspoken.engines.transformers import TransformersEngine
from unspoken.errors import GateFailed
from unspoken.spec import ModelSpec
from unspoken.transforms.rope import Move

CHECKS = {"continue", "moved", "stored", "causal"}


class Wrapped:
    """An engine that does what another does; the broken ones below are made of it."""

    def __init__(self, inner: Engine) -> None:
        self.inner = inner
        self.name, self.version = inner.name, inner.version
        self.dtype, self.precision = inner.dtype, inner.precision

    @property
    def spec(self) -> ModelSpec:
        """The inner engine's model."""
        return self.inner.spec

    def encode(self, text: str) -> tuple[int, ...]:
        """As the inner engine."""
        return self.inner.encode(text)

    def decode(self, token_ids: Any) -> str:
        """As the inner engine."""
        return self.inner.decode(token_ids)

    def frame(self, system: str) -> Frame:
        """As the inner engine."""
        return self.inner.frame(system)

    def prefill(self, prompt: Prompt, past: KVCache | None = None, *, start: int | None = None) -> KVCache:
        """As the inner engine."""
        return self.inner.prefill(prompt, past, start=start)

    def logits(self, prompt: Prompt, past: KVCache | None = None, *, start: int | None = None) -> Tensor:
        """As the inner engine."""
        return self.inner.logits(prompt, past, start=start)

    def close(self) -> None:
        self.inner.close()

    def generate(self, turns: Any, limits: Limits, hear: Any = None) -> tuple[Generation, ...]:
        """As the inner engine."""
        return self.inner.generate(turns, limits, hear)


class IgnoresStart(Wrapped):
    """Reads every prompt at the position after its past, wherever it was told to."""

    def prefill(self, prompt: Prompt, past: KVCache | None = None, *, start: int | None = None) -> KVCache:
        """Forget `start`, but claim to have heeded it."""
        made = self.inner.prefill(prompt, past)
        if start is None:
            return made
        return made.rebuilt(
            made.manifest.lineage[-1], lambda layer: (layer.keys, layer.values, layer.positions + start)
        )


class LosesLayer(Wrapped):
    """Injects every layer of a past but the last."""

    def logits(self, prompt: Prompt, past: KVCache | None = None, *, start: int | None = None) -> Tensor:
        """Inject nothing into the last layer."""
        if past is not None:
            last = past.layers[-1]
            empty = KVLayer(last.index, last.keys * 0, last.values * 0, last.positions)
            past = KVCache((*past.layers[:-1], empty), past.manifest)
        return self.inner.logits(prompt, past, start=start)


class RotatesWrongly(Wrapped):
    """Keeps keys that are turned one position too far."""

    def prefill(self, prompt: Prompt, past: KVCache | None = None, *, start: int | None = None) -> KVCache:
        """Turn the keys, but not the positions that are written beside them."""
        made = self.inner.prefill(prompt, past, start=start)
        off = Move(int(made.positions.min()) + 1)(made)
        return KVCache(
            tuple(
                KVLayer(mine.index, other.keys, mine.values, mine.positions)
                for mine, other in zip(made.layers, off.layers, strict=True)
            ),
            made.manifest,
        )


class WrongPairing(Wrapped):
    """Says that neighbouring coordinates form a pair, while the model pairs the halves of a head."""

    def _renamed(self, cache: KVCache, pairing: str) -> KVCache:
        rope = msgspec.structs.replace(cache.spec.rope, pairing=pairing)
        spec = msgspec.structs.replace(cache.spec, rope=rope)
        return KVCache(cache.layers, msgspec.structs.replace(cache.manifest, spec=spec))

    def prefill(self, prompt: Prompt, past: KVCache | None = None, *, start: int | None = None) -> KVCache:
        """Describe the cache wrongly."""
        return self._renamed(self.inner.prefill(prompt, past, start=start), "interleaved")

    def logits(self, prompt: Prompt, past: KVCache | None = None, *, start: int | None = None) -> Tensor:
        """Take the wrongly described cache back."""
        return self.inner.logits(prompt, None if past is None else self._renamed(past, "half"), start=start)


class MakesNoNumbers(Wrapped):
    """Answers NaN as soon as it reads on top of a cache."""

    def logits(self, prompt: Prompt, past: KVCache | None = None, *, start: int | None = None) -> Tensor:
        """Spoil one logit."""
        found = self.inner.logits(prompt, past, start=start).clone()
        found[0, 0] = 0.0 if past is None else float("nan")
        return found


# Which checks each mistake must fail: the gate names the mistake, not only that there is one.
BROKEN: dict[str, tuple[type[Wrapped], set[str]]] = {
    "ignores start": (IgnoresStart, {"moved"}),
    "loses a layer": (LosesLayer, {"continue", "stored", "causal"}),
    "rotates wrongly": (RotatesWrongly, {"continue", "stored", "causal"}),
    "wrong pairing": (WrongPairing, {"moved"}),
    "makes no numbers": (MakesNoNumbers, CHECKS),
}


def test_every_supported_kind_of_model_passes(engine: TransformersEngine) -> None:
    found = ensure(engine, None)
    assert found.passed
    assert found.bound == BOUNDS["float32"] == 1e-4
    assert found.checks.keys() == CHECKS
    assert all(0 <= value <= found.bound for value in found.checks.values())


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_the_fake_passes_in_every_element_type(dtype: str) -> None:
    found = ensure(FakeEngine(dtype=dtype), None)
    assert found.passed
    assert found.bound == BOUNDS[dtype]


@pytest.mark.parametrize("name", sorted(BROKEN))
@pytest.mark.parametrize("kind", ["fake", "llama", "qwen3"])
def test_a_broken_engine_is_refused_with_its_numbers(
    kind: str, name: str, fake: FakeEngine, tiny_engine: Callable[..., TransformersEngine], tmp_path: Path
) -> None:
    make, expected = BROKEN[name]
    broken = make(fake if kind == "fake" else tiny_engine(kind))
    found = measure(broken)
    assert not found.passed
    # A mistake is not close to the bound: what passes and what fails lie orders of magnitude apart.
    assert {check for check, value in found.checks.items() if value > 100 * found.bound} >= expected
    with pytest.raises(GateFailed, match="do not survive a hand-over") as caught:
        ensure(broken, tmp_path)
    for check, value in found.checks.items():
        assert f"{check} {value:.2e}" in caught.value.problem
    assert "at most 1e-04 is allowed" in caught.value.problem
    assert caught.value.hint == "Use another model or engine, or a finer type: float32, --kv-type f16."
    assert list(tmp_path.iterdir()) == []


def test_masks_that_leak_the_future_are_found(
    tiny_engine: Callable[..., TransformersEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaking(rows: list[Row], width: int) -> Layout:
        layout = lay_out(rows, width)
        return replace(layout, allowed=torch.ones_like(layout.allowed))

    monkeypatch.setattr(module, "lay_out", leaking)
    found = measure(tiny_engine())
    assert found.checks["causal"] > 100 * found.bound
    with pytest.raises(GateFailed, match="causal"):
        ensure(tiny_engine(), None)


def test_an_engine_that_sees_through_its_past_alone_is_found(fake: FakeEngine) -> None:
    class Leaks(Wrapped):
        def logits(self, prompt: Prompt, past: KVCache | None = None, *, start: int | None = None) -> Tensor:
            found = self.inner.logits(prompt, past, start=start)
            return found if past is None else found + found[-1:] * 0.01

    found = measure(Leaks(fake))
    assert found.checks["causal"] > 100 * found.bound


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_bfloat16_passes_within_its_own_bound(
    kind: str, tiny_model: Callable[..., nn.Module], tiny_tokenizer: Callable[..., Any]
) -> None:
    engine = TransformersEngine(tiny_model(kind).to(torch.bfloat16), tiny_tokenizer())
    found = ensure(engine, None)
    assert found.bound == BOUNDS["bfloat16"] == 1.0
    # It is rounding that needs the wider bound: float32's would refuse every one of these.
    assert max(found.checks.values()) > BOUNDS["float32"]
    assert all(value < found.bound for value in found.checks.values())


def test_an_engine_of_an_unknown_element_type_gets_the_widest_bound(fake: FakeEngine) -> None:
    quantised = Wrapped(fake)
    quantised.precision = "another"
    assert measure(quantised).bound == BOUNDS["bfloat16"]


def test_a_result_is_remembered(fake: FakeEngine, tmp_path: Path) -> None:
    memory = tmp_path / "not" / "there" / "yet"
    first = ensure(fake, memory)
    with mock.patch.object(gate, "measure") as measured:
        assert ensure(FakeEngine(), memory) == first
    measured.assert_not_called()
    assert [path.suffix for path in memory.iterdir()] == [".json"]


def test_nothing_is_remembered_without_a_memory(fake: FakeEngine) -> None:
    with mock.patch.object(gate, "measure", side_effect=measure) as measured:
        ensure(fake, None)
        ensure(fake, None)
    assert measured.call_count == 2


def _version(engine: FakeEngine) -> None:
    engine.version = "2"


def _name(engine: FakeEngine) -> None:
    engine.name = "fake-on-another-device"


def _architecture(engine: FakeEngine) -> None:
    engine._spec = msgspec.structs.replace(engine.spec, architecture="another")


@pytest.mark.parametrize(
    ("other", "change"),
    [
        (FakeEngine(seed=1), None),
        (FakeEngine(dtype="bfloat16"), None),
        (FakeEngine(), _version),
        (FakeEngine(), _name),
        (FakeEngine(), _architecture),
    ],
    ids=["other weights", "other element type", "other version", "other engine", "other architecture"],
)
def test_a_result_holds_for_nothing_else(
    fake: FakeEngine, tmp_path: Path, other: FakeEngine, change: Callable[[FakeEngine], None] | None
) -> None:
    ensure(fake, tmp_path)
    if change is not None:
        change(other)
    with mock.patch.object(gate, "measure", side_effect=measure) as measured:
        ensure(other, tmp_path)
        ensure(fake, tmp_path)
    measured.assert_called_once_with(other)
    assert len(list(tmp_path.iterdir())) == 2


def test_another_version_of_the_package_measures_again(
    fake: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure(fake, tmp_path)
    monkeypatch.setattr(gate, "__version__", "99.0")
    with mock.patch.object(gate, "measure", side_effect=measure) as measured:
        ensure(fake, tmp_path)
    measured.assert_called_once()


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b"[]", b'{"passed": true}', b'{"passed": 1, "bound": 1}'])
def test_a_corrupt_memory_is_measured_again(fake: FakeEngine, tmp_path: Path, damage: bytes) -> None:
    first = ensure(fake, tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage)
    with mock.patch.object(gate, "measure", side_effect=measure) as measured:
        assert ensure(fake, tmp_path) == first
    measured.assert_called_once()


def test_a_remembered_failure_is_a_failure(fake: FakeEngine, tmp_path: Path) -> None:
    ensure(fake, tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(msgspec.json.encode(GateResult(False, 1e-4, dict.fromkeys(CHECKS, 0.5), 0.5, 1e-6)))
    with pytest.raises(GateFailed, match=r"causal 5\.00e-01"):
        ensure(fake, tmp_path)


def test_a_memory_that_cannot_be_written_is_no_failure(fake: FakeEngine, tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("in the way")
    assert ensure(fake, in_the_way).passed
    assert ensure(fake, in_the_way / "below").passed
    assert in_the_way.read_text() == "in the way"


def test_a_memory_on_a_full_disk_is_no_failure(
    fake: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> int:
        raise OSError(28, "No space left on device")

    expected = measure(fake)
    monkeypatch.setattr(Path, "write_bytes", full)
    assert _remembered(fake, tmp_path, expected).passed
    assert list(tmp_path.iterdir()) == []


def _remembered(engine: FakeEngine, memory: Path, result: GateResult) -> GateResult:
    with mock.patch.object(gate, "measure", return_value=result):
        return ensure(engine, memory)


def test_the_gate_leaves_no_files_behind(fake: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    measure(fake)
    assert list(tmp_path.iterdir()) == []


def test_a_wrapped_engine_is_an_engine(fake: FakeEngine) -> None:
    wrapped = Wrapped(fake)
    assert isinstance(wrapped, Engine)
    assert measure(wrapped) == measure(fake)
    turn = Turn(wrapped.frame("Be brief.").before)
    made = wrapped.generate([turn], Limits(9))[0].token_ids
    assert wrapped.decode(made) == fake.generate([turn], Limits(9))[0].text
