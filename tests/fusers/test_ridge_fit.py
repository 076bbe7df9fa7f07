"""The closed form, against hand-computed attention, numpy's least squares, and layers that were planted."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from unspoken.errors import UsageError
from unspoken.fusers.pair import Pair, Side
from unspoken.fusers.ridge_fit import HeldOut, Windows, attended, attention_error, solved
from unspoken.spec import RopeSpec

ROPE = RopeSpec("default", "half", (1.0, 0.1))
STILL = RopeSpec("default", "half", (0.0, 0.0))


def side(layers: int, kv_heads: int = 1) -> Side:
    """A model with heads of four coordinates."""
    return Side("tiny", "weights", "architecture", "tokenizer", layers, kv_heads, 4)


def drawn(seed: int, *shape: int) -> Tensor:
    """Random numbers of one seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def turned(keys: Tensor, positions: Tensor, rope: RopeSpec = ROPE) -> Tensor:
    """Keys at positions, pair by pair as complex numbers: a second implementation."""
    angle = positions[:, None] * torch.tensor(rope.inverse_frequencies)
    pairs = torch.complex(keys[..., :2], keys[..., 2:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((pairs.real, pairs.imag), dim=-1)


def test_attention_output_by_hand() -> None:
    # Head 0 prefers the second column three to one, since 2 ln 3 / sqrt(4) = ln 3; head 1 sees both alike.
    queries = torch.zeros(2, 1, 4)
    queries[0, 0, 0] = 2 * math.log(3)
    keys = torch.tensor([[[0.0, 1, 1, 1], [1, 1, 1, 1]]])
    values = torch.tensor([[[0.0, 8, 0, 0], [4, 0, 0, 0]]])
    expected = torch.tensor([[[3.0, 2, 0, 0]], [[2, 4, 0, 0]]])
    assert torch.allclose(attended(queries, keys, values), expected, atol=1e-6)


def test_neighbouring_query_heads_share_a_key_value_head() -> None:
    queries, keys, values = drawn(1, 4, 3, 4), drawn(2, 2, 5, 4), drawn(3, 2, 5, 4)
    heard = attended(queries, keys, values)
    for head in range(4):
        own = attended(queries[head : head + 1], keys[head // 2][None], values[head // 2][None])
        assert torch.allclose(heard[head], own[0], atol=1e-6)


def one_text(free: Tensor, values: Tensor, start: int, rope: RopeSpec = ROPE, rows: Tensor | None = None) -> HeldOut:
    """A text held out, with one receiver layer whose true keys are the position-free ones turned."""
    positions = torch.arange(start, start + free.shape[1], dtype=torch.int32)
    queries = (drawn(9, 2 * len(free), 3, 4),)
    sent = torch.zeros(free.shape[1], 8) if rows is None else rows
    return HeldOut(sent, positions, queries, (turned(free, positions, rope),), (values,))


def as_columns(free: Tensor, values: Tensor) -> Tensor:
    """Keys and values of one layer as rows: keys of all heads, then values."""
    return torch.cat([half.transpose(0, 1).flatten(1) for half in (free, values)], dim=1)


def test_the_error_of_attention_is_none_for_true_columns_at_their_positions_and_a_square_otherwise() -> None:
    free, values, model = drawn(4, 2, 6, 4), drawn(5, 2, 6, 4), side(7, 2)
    held = [one_text(free, values, start) for start in (0, 40)]

    def error(keys: Tensor, values: Tensor, texts: list[HeldOut]) -> float:
        return attention_error([as_columns(keys, values)] * len(texts), texts, 0, model, ROPE)

    assert error(free, values, held) < 1e-10
    # Attention's output grows with the values, so half as much again is a quarter off.
    assert error(free, 1.5 * values, held) == pytest.approx(0.25, abs=1e-5)
    assert error(free, 0 * values, held) == pytest.approx(1, abs=1e-6)
    # Keys that already stand where the true ones do would be turned twice.
    assert error(held[1].keys[0], values, held[1:]) > 0.01
    assert error(free.flip(0), values, held) > 0.01


def test_errors_of_several_texts_are_weighed_by_what_attention_comes_to() -> None:
    free, values, model = drawn(4, 1, 6, 4), drawn(5, 1, 6, 4), side(1)
    large, small = one_text(free, 3 * values, 0), one_text(free, values, 0)
    made = [as_columns(free, 3 * values), as_columns(free, 0 * values)]
    # The first is right, the second silent, and the first has nine tenths of the squares.
    assert attention_error(made, [large, small], 0, model, ROPE) == pytest.approx(0.1, abs=1e-5)


def texts(seed: int, columns: int, layers: int) -> Tensor:
    """Columns of a sender: correlated, with means far off and spreads that differ."""
    mixed = drawn(seed, columns, 8 * layers) @ drawn(0, 8 * layers, 8 * layers)
    return mixed * torch.logspace(-1, 1, 8 * layers) + 50 * drawn(1, 8 * layers)


def test_one_column_after_another_gives_what_all_at_once_and_numpy_give() -> None:
    pair, penalty = Pair(side(2), side(1)), 0.03
    sent = texts(3, 200, 2)
    own = sent @ drawn(4, 16, 8) + drawn(5, 200, 8)
    streamed, whole = Windows(pair, 2), Windows(pair, 2)
    whole.add(sent, own)
    for part in torch.arange(200).split([1, 60, 3, 136]):
        streamed.add(sent[part], own[part])
    maps = [each.fitted((), ROPE, 2, penalty)[0] for each in (streamed, whole)]
    x, y = sent.double().numpy(), own.double().numpy()
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean(0)) / y.std(0)
    # A penalty is so many further rows that would have every weight at zero.
    rows = np.concatenate((x, math.sqrt(200 * penalty) * np.eye(16)))
    expected, *_ = np.linalg.lstsq(rows, np.concatenate((y, np.zeros((16, 8)))), rcond=None)
    for each in maps:
        assert each.sources == (0, 1)
        np.testing.assert_allclose(each.matrix.numpy(), expected.T, atol=2e-4)
        np.testing.assert_allclose(each.inputs_mean.numpy(), sent.double().mean(0).numpy(), rtol=1e-5)
        np.testing.assert_allclose(each.targets_scale.numpy(), own.double().std(0, correction=0).numpy(), rtol=1e-4)


def test_a_linear_relation_is_recovered() -> None:
    pair = Pair(side(3), side(2))
    sent, true = texts(3, 400, 3), drawn(4, 24, 16)
    own = sent @ true / 10 + drawn(6, 16)
    seen = Windows(pair, 3)
    seen.add(sent[:300], own[:300])
    maps = seen.fitted((), ROPE, 3, 1e-6)
    made = torch.cat([each(seen.inputs(sent[300:], each.sources)) for each in maps], dim=1)
    assert float(((made - own[300:]) / own.std(0)).abs().max()) < 0.01


def planted(seed: int, columns: int) -> tuple[Tensor, Tensor]:
    """Columns of three sender layers and of one of the receiver's.

    The first layer knows six of the eight numbers, but attention hardly depends on them; the second knows the other
    two, along which queries look and of which values are made. The third knows nothing.
    """
    own, sent = drawn(seed, columns, 8), drawn(seed + 1, columns, 3, 8)
    own[:, 5:] *= 0.05
    sent[:, 0, :6] = own[:, [1, 2, 3, 5, 6, 7]]
    sent[:, 1, :2] = own[:, [0, 4]]
    return sent.flatten(1), own


def test_the_layer_that_serves_attention_is_chosen_where_r2_would_choose_another() -> None:
    sent, own = planted(10, 600)
    seen = Windows(Pair(side(3), side(1)), 3)
    seen.add(sent, own)
    rows, true = planted(20, 60)
    keys, values = true[:, :4][None], true[:, 4:][None]
    queries = torch.zeros(2, 8, 4)
    queries[:, :, 0] = 4 * drawn(30, 2, 8)
    held = HeldOut(rows, torch.arange(60, dtype=torch.int32), (queries,), (keys,), (values,))
    assert seen.candidates == ((0, 1, 2),)
    assert [seen.fitted([held], STILL, count)[0].sources for count in (1, 2, 3)] == [(1,), (1, 0), (1, 0, 2)]

    def r2(layer: int) -> float:
        inputs = np.c_[seen.inputs(sent, [layer]).numpy(), np.ones(600)]
        weights, *_ = np.linalg.lstsq(inputs, own.numpy(), rcond=None)
        left = true.numpy() - np.c_[seen.inputs(rows, [layer]).numpy(), np.ones(60)] @ weights
        return float((1 - (left**2).sum(0) / ((true.numpy() - true.numpy().mean(0)) ** 2).sum(0)).mean())

    assert max(range(3), key=r2) == 0


def test_every_layer_of_the_receiver_chooses_of_its_own_window() -> None:
    seen = Windows(Pair(side(5), side(3)), 2)
    assert seen.candidates == ((0, 1), (2, 1), (4, 3))
    sent = texts(3, 100, 5)
    seen.add(sent, drawn(4, 100, 24))
    assert [each.sources for each in seen.fitted((), ROPE, 2)] == [(0, 1), (2, 1), (4, 3)]
    assert seen.inputs(sent, [4, 3]).equal(torch.cat((sent[:, 32:], sent[:, 24:32]), dim=1))


def test_each_windows_correlations_are_numpys_though_windows_overlap() -> None:
    pair = Pair(side(5), side(4))
    sent, own = texts(3, 120, 5), drawn(4, 120, 32) + 20
    seen = Windows(pair, 3)
    for part in torch.arange(120).split(50):
        seen.add(sent[part], own[part])
    # Relative depths 0, 1/3, 2/3, 1 against 0, 1/4, 1/2, 3/4, 1.
    assert seen.candidates == ((0, 1, 2), (1, 2, 0), (3, 2, 4), (4, 3, 2))
    for layer, (candidates, found) in enumerate(zip(seen.candidates, seen.moments(), strict=True)):
        inputs = np.concatenate([sent[:, 8 * each : 8 * each + 8].double().numpy() for each in candidates], axis=1)
        targets = own[:, 8 * layer : 8 * layer + 8].double().numpy()
        expected = np.corrcoef(inputs, targets, rowvar=False)
        np.testing.assert_allclose(found.gram.numpy(), expected[:24, :24], atol=1e-5)
        np.testing.assert_allclose(found.cross.numpy(), expected[:24, 24:], atol=1e-5)
        np.testing.assert_allclose(found.inputs_mean.numpy(), inputs.mean(0), rtol=1e-5)
        np.testing.assert_allclose(found.inputs_scale.numpy(), inputs.std(0), rtol=1e-4)
        np.testing.assert_allclose(found.targets_mean.numpy(), targets.mean(0), rtol=1e-5)
        np.testing.assert_allclose(found.targets_scale.numpy(), targets.std(0), rtol=1e-4)


def test_penalties_hold_single_inputs_back() -> None:
    # Inputs that have nothing in common are each shrunk by their own penalty: c / (1 + p).
    made = solved(torch.eye(2), torch.tensor([[0.5], [0.5]]), torch.tensor([0.25, 4.0]))
    assert torch.allclose(made, torch.tensor([[0.4, 0.1]]))


def test_a_further_layer_is_held_back_where_it_would_learn_by_heart() -> None:
    # The first layer knows the values, and little else is known; twenty columns are few for sixteen inputs.
    def columns(seed: int, count: int) -> tuple[Tensor, Tensor]:
        own = drawn(seed, count, 8)
        sent = torch.stack((own + 0.3 * drawn(seed + 1, count, 8), drawn(seed + 2, count, 8)), dim=1)
        return sent.flatten(1), own

    sent, own = columns(40, 20)
    seen = Windows(Pair(side(2), side(1)), 2)
    seen.add(sent, own)
    rows, true = columns(50, 200)
    positions = torch.arange(200, dtype=torch.int32)
    held = HeldOut(rows, positions, (drawn(60, 2, 8, 4),), (true[:, :4][None],), (true[:, 4:][None],))
    (chosen,) = seen.fitted([held], STILL, 2, 0.01)
    (alike,) = seen.fitted((), STILL, 2, 0.01)
    assert chosen.sources == (0, 1)
    helper = chosen.matrix[:, 8:]
    assert float(helper.abs().max()) < 0.1 < float(alike.matrix[:, 8:].abs().max())


def test_what_cannot_be_fitted_is_refused() -> None:
    pair = Pair(side(3), side(1))
    with pytest.raises(UsageError, match="4 sources for each of 1 receiver layers"):
        Windows(pair, 4)
    seen = Windows(pair, 2)
    with pytest.raises(UsageError, match="1 layers cannot be chosen of 2 by 0 texts"):
        seen.fitted((), ROPE, 1)
    with pytest.raises(UsageError, match="3 layers cannot be chosen of 2"):
        seen.fitted((), ROPE, 3)
    with pytest.raises(UsageError, match="fitted to 0 columns"):
        seen.fitted((), ROPE, 2)
    with pytest.raises(UsageError, match="A penalty of 0 is too small"):
        solved(torch.ones(2, 2), torch.ones(2, 1), torch.zeros(2))
