"""Columns as rows and back: where each number stands, and that none is lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from unspoken.cache import KVCache, KVLayer
from unspoken.channels.kv import content_columns
from unspoken.engines.fake import FakeEngine
from unspoken.engines.transformers import TransformersEngine
from unspoken.errors import IncompatibleCache, UsageError
from unspoken.fusers.pair import Side
from unspoken.fusers.rows import as_cache, as_layers, as_rows
from unspoken.manifest import Span, Step
from unspoken.session import Agent
from unspoken.transforms.cast import Cast

SIDE = Side("small", "w", "a", "t", layers=2, kv_heads=2, head_dim=3)
TEXT = "The old mill is run by Anna."


def test_a_row_holds_layer_after_layer_keys_before_values_head_after_head() -> None:
    # The number of layer l, half s (keys, values), head h, column c, coordinate d is spelt lshcd.
    def number(layer: int, half: int) -> torch.Tensor:
        heads = [
            [[int(f"{layer + 1}{half}{head}{column}{at}") for at in range(3)] for column in range(4)]
            for head in range(2)
        ]
        return torch.tensor(heads, dtype=torch.float32)

    spec = FakeEngine().spec
    layers = [KVLayer(at, number(at, 0), number(at, 1), torch.arange(4, dtype=torch.int32)) for at in range(2)]
    rows = as_rows(KVCache.build(layers, spec, rope="removed"))
    assert rows.shape == (4, SIDE.width)
    assert rows[2].int().tolist() == [
        10020, 10021, 10022, 10120, 10121, 10122,
        11020, 11021, 11022, 11120, 11121, 11122,
        20020, 20021, 20022, 20120, 20121, 20122,
        21020, 21021, 21022, 21120, 21121, 21122,
    ]  # fmt: skip
    halves = as_layers(rows, SIDE)
    assert halves.shape == (2, 2, 2, 4, 3)
    for at in range(2):
        assert torch.equal(halves[at, 0], number(at, 0))
        assert torch.equal(halves[at, 1], number(at, 1))


def test_a_models_columns_go_there_and_back(engine: TransformersEngine) -> None:
    content = content_columns(Agent("lyra", engine).read(TEXT).cache)
    rows = as_rows(content)
    assert rows.shape == (len(TEXT), Side.of(engine.spec).width)
    back = as_cache(rows, engine.spec, [Step("fuse", {"fuser": "x"})], "lyra")
    for mine, other in zip(back.layers, content.layers, strict=True):
        assert torch.equal(mine.keys, other.keys)
        assert torch.equal(mine.values, other.values)
        assert mine.keys.is_contiguous()
        assert mine.index == other.index
        assert mine.positions.tolist() == list(range(len(TEXT)))
        assert mine.positions.dtype == torch.int32
    told = back.manifest
    assert (told.rope, told.sender, told.token_ids) == ("removed", "lyra", None)
    assert told.spans == (Span("content", 0, len(TEXT)),)
    assert told.lineage == (Step("fuse", {"fuser": "x"}),)
    assert torch.equal(as_rows(back), rows)


def test_rows_are_float32_whatever_the_cache_is(tiny_engine: Callable[..., TransformersEngine]) -> None:
    content = Cast("bfloat16")(content_columns(Agent("lyra", tiny_engine()).read(TEXT).cache))
    rows = as_rows(content)
    assert rows.dtype == torch.float32
    assert torch.equal(rows[:, :16], content.layers[0].keys[0].float())


def test_layers_are_a_view_that_gradients_pass_through() -> None:
    rows = torch.randn(3, SIDE.width, requires_grad=True)
    halves = as_layers(rows, SIDE)
    assert halves.untyped_storage().data_ptr() == rows.untyped_storage().data_ptr()
    halves[1, 0, 1, 2, 0].backward()
    assert rows.grad is not None
    # Layer 1 begins at 12, its keys' second head at 3 more.
    assert rows.grad.nonzero().tolist() == [[2, 15]]


def test_rows_of_another_width_are_refused() -> None:
    with pytest.raises(IncompatibleCache, match="Columns of 23 numbers are none of 'small', whose columns have 24"):
        as_layers(torch.zeros(2, 23), SIDE)
    with pytest.raises(IncompatibleCache, match="whose columns have"):
        as_cache(torch.zeros(2, 7), FakeEngine().spec, [], "lyra")


def test_turned_keys_are_refused(tiny_engine: Callable[..., TransformersEngine]) -> None:
    read = Agent("lyra", tiny_engine()).read(TEXT).cache
    with pytest.raises(UsageError, match="A cache with RoPE applied and"):
        as_rows(read)


def test_uneven_layers_are_refused() -> None:
    def layer(index: int, columns: int) -> KVLayer:
        return KVLayer(index, torch.zeros(2, columns, 3), torch.zeros(2, columns, 3), torch.arange(columns))

    cache = KVCache.build([layer(0, 3), layer(1, 2)], FakeEngine().spec, rope="removed")
    with pytest.raises(UsageError, match=r"RoPE removed and \[2, 3\] columns cannot be mapped"):
        as_rows(cache)
