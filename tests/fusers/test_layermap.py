"""Layer maps: the published examples, the formulae, and what holds for every pair of sizes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unspoken.errors import UsageError
from unspoken.fusers.layermap import depth_normalised, last_aligned

LAYERS = st.integers(1, 40)


def test_the_published_examples() -> None:
    assert last_aligned(4, 3) == ((0,), (0,), (1,), (2,))
    assert depth_normalised(4, 3) == ((0,), (1,), (1,), (2,))


def test_a_deeper_senders_first_layers_are_not_heard() -> None:
    assert last_aligned(28, 36) == tuple((layer,) for layer in range(8, 36))


def test_a_deeper_receivers_first_layers_all_hear_layer_0() -> None:
    assert last_aligned(28, 24) == tuple((layer,) for layer in [0, 0, 0, 0, *range(24)])


def test_further_sources_lie_before_the_anchor_then_behind_it() -> None:
    assert last_aligned(4, 3, k=2) == ((0, 1), (0, 1), (1, 0), (2, 1))
    assert last_aligned(2, 4, k=3) == ((2, 1, 0), (3, 2, 1))
    assert last_aligned(3, 3, k=3) == ((0, 1, 2), (1, 0, 2), (2, 1, 0))


def test_further_sources_are_the_next_nearest_by_depth_the_lower_one_first() -> None:
    # Depths 0, 1/3, 2/3, 1 against 0, 1/2, 1.
    assert depth_normalised(4, 3, k=2) == ((0, 1), (1, 0), (1, 2), (2, 1))
    # Depth 1/4 lies in the middle of 0 and 1/2.
    assert depth_normalised(5, 3)[1] == (0,)


def test_a_single_layer_is_at_depth_0() -> None:
    assert depth_normalised(1, 5) == ((0,),)
    assert depth_normalised(3, 1) == ((0,), (0,), (0,))


@given(LAYERS, LAYERS, st.data())
def test_maps_for_all_sizes(receiver: int, sender: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, sender))
    for layer_map in (last_aligned(receiver, sender, k), depth_normalised(receiver, sender, k)):
        assert len(layer_map) == receiver
        assert all(len(set(sources)) == k and set(sources) <= set(range(sender)) for sources in layer_map)
        anchors = [sources[0] for sources in layer_map]
        assert anchors == sorted(anchors)
    assert last_aligned(receiver, sender, k)[-1][0] == sender - 1
    for t, sources in enumerate(depth_normalised(receiver, sender, k)):
        distances = [abs(t / max(receiver - 1, 1) - s / max(sender - 1, 1)) for s in range(sender)]
        assert sorted(distances)[:k] == pytest.approx([distances[s] for s in sources])


@pytest.mark.parametrize("sizes", [(0, 3, 1), (3, 0, 1), (-1, 3, 1), (4, 3, 0), (4, 3, 4)])
@pytest.mark.parametrize("layer_map", [last_aligned, depth_normalised])
def test_nonsense_is_refused(layer_map: object, sizes: tuple[int, int, int]) -> None:
    assert callable(layer_map)
    with pytest.raises(UsageError, match="cannot come from"):
        layer_map(*sizes)
