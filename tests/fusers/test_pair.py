"""A fuser is for two models, told by everything its map depends on; any other is refused with what differs."""

from __future__ import annotations

import json

import msgspec
import pytest

from unspoken.engines.fake import FakeEngine
from unspoken.errors import IncompatibleCache
from unspoken.fusers.pair import BOUND, Pair, Side
from unspoken.spec import ModelSpec

SPEC = FakeEngine().spec


def changed(**fields: object) -> ModelSpec:
    """The fake model's description with other fields."""
    return msgspec.structs.replace(SPEC, **fields)


SENDER = changed(name="reader", weights="w1", tokenizer="t1", layers=3, kv_heads=2, head_dim=8)
RECEIVER = changed(name="answerer", weights="w2", tokenizer="t2", layers=5, kv_heads=1, head_dim=4)
PAIR = Pair.of(SENDER, RECEIVER)


def test_a_side_is_what_the_model_says() -> None:
    assert PAIR.sender == Side("reader", "w1", SPEC.architecture, "t1", 3, 2, 8)
    assert PAIR.receiver == Side("answerer", "w2", SPEC.architecture, "t2", 5, 1, 4)
    # Keys and values of all heads and layers.
    assert (PAIR.sender.width, PAIR.receiver.width) == (2 * 3 * 2 * 8, 2 * 5 * 1 * 4)
    assert PAIR.sender.width == SENDER.elements_per_column()


def test_its_own_pair_is_taken_under_any_name_and_template() -> None:
    PAIR.require(SENDER, RECEIVER)
    renamed = msgspec.structs.replace(SENDER, name="other", chat_template="c", context=99)
    PAIR.require(renamed, RECEIVER)


@pytest.mark.parametrize("role", ["sender", "receiver"])
@pytest.mark.parametrize("field", BOUND)
def test_one_difference_is_refused_and_told(role: str, field: str) -> None:
    value: object = 77 if isinstance(getattr(SPEC, field), int) else "another"
    models = {"sender": SENDER, "receiver": RECEIVER}
    models[role] = msgspec.structs.replace(models[role], name="stranger", **{field: value})
    with pytest.raises(IncompatibleCache) as told:
        PAIR.require(models["sender"], models["receiver"])
    own = getattr(getattr(PAIR, role), field)
    assert told.value.problem.startswith("The fuser is for 'reader' to 'answerer' and does not fit ")
    assert told.value.problem.endswith(f": the {role}'s {field} is {value}, the fuser's {own}.")
    assert "'stranger'" in told.value.problem


def test_all_differences_are_told_at_once() -> None:
    with pytest.raises(IncompatibleCache) as told:
        PAIR.require(RECEIVER, SENDER)
    differing = [field for field in BOUND if getattr(SENDER, field) != getattr(RECEIVER, field)]
    assert differing == ["weights", "tokenizer", "layers", "kv_heads", "head_dim"]
    for role in ("sender", "receiver"):
        assert all(f"the {role}'s {field} is " in told.value.problem for field in differing)
    assert "architecture" not in told.value.problem


def test_a_pair_survives_json() -> None:
    plain = json.loads(json.dumps(msgspec.to_builtins(PAIR)))
    assert msgspec.convert(plain, Pair) == PAIR


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 0}, "layers"),
        ({"head_dim": -8}, "head_dim"),
        ({"kv_heads": 1 << 30}, "kv_heads"),
        ({"layers": 2.5}, "layers"),
        ({"weights": 3}, "weights"),
        ({"extra": 1}, "extra"),
    ],
)
def test_a_side_of_impossible_sizes_is_none(change: dict[str, object], message: str) -> None:
    plain = msgspec.to_builtins(PAIR)
    plain["sender"] |= change
    with pytest.raises(msgspec.ValidationError, match=message):
        msgspec.convert(plain, Pair)
