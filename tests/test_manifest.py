"""Two descriptions of a model are compared field by field, each difference as bad as it is."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from unspoken.engines.fake import FakeEngine
from unspoken.errors import IncompatibleCache
from unspoken.manifest import Manifest, Span, compare, require_compatible
from unspoken.spec import ModelSpec, RopeSpec, fingerprint

OTHER_ROPE = RopeSpec("linear", "half", (0.5, 0.25, 0.125, 0.0625))
FATAL: dict[str, Any] = {
    "family": "other",
    "layers": 3,
    "kv_heads": 7,
    "head_dim": 9,
    "vocabulary": 11,
    "rope": OTHER_ROPE,
    "weights": "w",
    "architecture": "a",
    "tokenizer": "t",
}


@pytest.fixture
def spec(fake: FakeEngine) -> ModelSpec:
    """A description to compare with."""
    return fake.spec


def _with(spec: ModelSpec, **fields: Any) -> ModelSpec:
    changed: ModelSpec = msgspec.structs.replace(spec, **fields)
    return changed


def test_a_model_fits_itself_under_any_name(spec: ModelSpec) -> None:
    renamed = _with(spec, name="another")
    assert compare(spec, renamed) == []
    require_compatible(spec, renamed)


@pytest.mark.parametrize("field", sorted(FATAL))
def test_what_a_cache_depends_on_is_fatal(spec: ModelSpec, field: str) -> None:
    (found,) = compare(_with(spec, **{field: FATAL[field]}), spec)
    assert (found.field, found.severity) == (field, "fatal")


def test_every_field_but_the_name_is_compared(spec: ModelSpec) -> None:
    fields = set(spec.__struct_fields__) - {"name"}
    assert fields == {*FATAL, "context", "chat_template"}


def test_another_template_is_lossy_and_another_context_a_note(spec: ModelSpec) -> None:
    changed = _with(spec, context=1, chat_template="x")
    assert {each.field: each.severity for each in compare(changed, spec)} == {
        "context": "note",
        "chat_template": "lossy",
    }
    require_compatible(changed, spec)


def test_any_property_of_the_rope_is_compared(spec: ModelSpec) -> None:
    rope = spec.rope
    changes: list[dict[str, Any]] = [
        {"pairing": "interleaved"},
        {"inverse_frequencies": (*rope.inverse_frequencies[:-1], 0.5)},
        {"attention_scaling": 1.1},
    ]
    for change in changes:
        (found,) = compare(_with(spec, rope=msgspec.structs.replace(rope, **change)), spec)
        assert (found.field, found.severity) == ("rope", "fatal")


def test_how_a_library_names_or_rounds_a_rope_is_no_difference(spec: ModelSpec) -> None:
    rope = spec.rope
    rounded = tuple(value * (1 + 3e-7) for value in rope.inverse_frequencies)
    for change in ({"kind": "llama3"}, {"inverse_frequencies": rounded}):
        assert compare(_with(spec, rope=msgspec.structs.replace(rope, **change)), spec) == []


def test_refusal_lists_every_fatal_difference_and_what_to_do(spec: ModelSpec) -> None:
    made_by = _with(spec, name="maker", layers=28, weights="abc", chat_template="x", rope=OTHER_ROPE)
    with pytest.raises(IncompatibleCache) as caught:
        require_compatible(made_by, spec)
    message = str(caught.value)
    assert "'maker'" in message
    assert f"'{spec.name}'" in message
    assert f"layers is 28, the model has {spec.layers}" in message
    assert "weights is abc" in message
    assert "rope is linear RoPE over 8 dims (0.125 in the middle, " in message
    assert "chat_template" not in message
    assert "unspoken verify" in caught.value.hint


def test_manifest_survives_json(fake: FakeEngine) -> None:
    from unspoken.engines.protocol import Piece, Prompt

    manifest = fake.prefill(Prompt((Piece("content", (1, 2)),))).manifest
    assert msgspec.json.decode(msgspec.json.encode(manifest), type=Manifest) == manifest


def test_a_span_moves_by_columns() -> None:
    assert Span("content", 2, 5).shifted(3) == Span("content", 5, 8)


def test_a_fingerprint_is_the_head_of_sha256() -> None:
    # sha256("abc"), FIPS 180-2, appendix B.1.
    assert fingerprint("abc") == fingerprint(b"abc") == "ba7816bf8f01cfea414140de5dae2223"
