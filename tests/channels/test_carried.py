"""What was left in a store is taken up as if it had come directly, or its text is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unspoken.channels.carried import completed, take_up
from unspoken.channels.kv import content_columns, received
from unspoken.engines.fake import FakeEngine
from unspoken.engines.protocol import Engine, Limits
from unspoken.errors import CacheFileError, IncompatibleCache, SealRefused, TransportFailed
from unspoken.session import Agent
from unspoken.transports import open_transport

TEXT, ASKED = "The old mill is run by Anna.", "Who runs the old mill?"


@pytest.fixture
def place(tmp_path: Path) -> str:
    """A store in which Lyra's reading lies under the key k."""
    address = f"file:{tmp_path}"
    with open_transport(address) as transport:
        transport.put("k", content_columns(Agent("lyra", FakeEngine()).read(TEXT).cache))
    return address


def test_what_is_taken_up_is_what_came_directly(place: str) -> None:
    vera = Agent("vera", FakeEngine())
    taken = take_up(vera, place, "k")
    assert taken.lost is None
    directly = received(content_columns(Agent("lyra", FakeEngine()).read(TEXT).cache), vera)
    past, other = taken.delivery.past, directly.past
    assert past is not None
    assert other is not None
    for one, two in zip(past.layers, other.layers, strict=True):
        assert torch.equal(one.keys, two.keys)
        assert torch.equal(one.positions, two.positions)
    assert taken.delivery.tokens_skipped == directly.tokens_skipped > 0
    assert taken.delivery.seconds.move > 0
    assert vera.answer([ASKED], [taken.delivery], Limits(4))[0].text == "Anna"


@pytest.mark.parametrize("way", ["deleted", "damaged", "unreachable"])
def test_where_the_cache_is_lost_the_text_is_read(place: str, tmp_path: Path, way: str) -> None:
    vera, file = Agent("vera", FakeEngine()), tmp_path / "k.kv.safetensors"
    if way == "deleted":
        file.unlink()
    elif way == "damaged":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        place = f"file:{file}/folder"
    with pytest.raises(CacheFileError if way == "damaged" else TransportFailed):
        take_up(vera, place, "k")
    taken = take_up(vera, place, "k", text=TEXT)
    assert taken.lost is not None
    assert (taken.delivery.channel, taken.delivery.tokens_skipped) == ("full-text", 0)
    assert vera.answer([ASKED], [taken.delivery], Limits(4))[0].text == "Anna"


def test_what_is_refused_is_not_read_instead(place: str) -> None:
    def never(_: object) -> None:
        raise SealRefused("No.", "Ask again.")

    vera = Agent("vera", FakeEngine())
    with pytest.raises(SealRefused):
        take_up(vera, place, "k", judge=never, text=TEXT)
    with pytest.raises(SealRefused):
        take_up(vera, place, "k", ready=never, text=TEXT)
    with pytest.raises(IncompatibleCache):
        take_up(Agent("vera", FakeEngine(seed=1)), place, "k", text=TEXT)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("came", [1, 7])
def test_a_tail_that_did_not_travel_is_read_again(
    tiny_engine: Callable[[str], Engine], tmp_path: Path, kind: str, came: int
) -> None:
    engine = tiny_engine(kind)
    cache = Agent("lyra", engine).read(TEXT).cache
    ids = cache.manifest.token_ids
    assert ids is not None
    with open_transport(f"file:{tmp_path}") as transport:
        transport.put("k", cache.slice(0, came))
        arrived = replace(transport.get("k"), missing=ids[came:])
    whole = completed(arrived, engine)
    assert whole.manifest.token_ids == ids
    for one, two in zip(whole.layers, cache.layers, strict=True):
        assert torch.allclose(one.keys, two.keys, atol=1e-5)
        assert torch.allclose(one.values, two.values, atol=1e-5)
        assert torch.equal(one.positions, two.positions)
