"""Who hears whom, and in which order they speak."""

from __future__ import annotations

import networkx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unspoken.engines.fake import UNKNOWN, FakeEngine
from unspoken.errors import UsageError
from unspoken.session import TOPOLOGIES, Agent, Session, topology_named
from unspoken.session.topology import ADD, GO_ON, MEND, REVIEW, routes

from .talks import ASKED, NAMES, TOLD, Made

PAIRS = st.lists(st.tuples(*[st.sampled_from("abcdef")] * 2).filter(lambda pair: pair[0] != pair[1]), unique=True)


@given(PAIRS)
def test_everything_gets_to_an_agent_along_the_shortest_ways(pairs: list[tuple[str, str]]) -> None:
    graph = networkx.DiGraph([("b", "a"), *pairs])
    ways = routes(dict.fromkeys(graph.edges), "a")
    distance = networkx.shortest_path_length(graph, target="a")
    assert {sender for sender, _ in ways} == set(distance) - {"a"}
    assert len(ways) == len(distance) - 1
    for sender, receiver in ways:
        assert graph.has_edge(sender, receiver)
        assert distance[sender] == distance[receiver] + 1
    # The farthest first: what is handed on has arrived before.
    assert [distance[sender] for sender, _ in ways] == sorted((distance[sender] for sender, _ in ways), reverse=True)


@pytest.mark.parametrize(
    ("topology", "agents", "speakers"),
    [
        ("table", NAMES, [("lyra", TOLD), ("vera", ADD), ("cc", ADD)]),
        ("relay", NAMES, [("lyra", TOLD), ("vera", GO_ON), ("cc", GO_ON)]),
        ("fan-out", NAMES, [("lyra", TOLD), ("vera", ADD), ("cc", ADD)]),
        ("critic", NAMES[:2], [("lyra", TOLD), ("vera", REVIEW), ("lyra", MEND)]),
    ],
)
def test_a_round_goes_as_the_topology_has_it(
    fake: FakeEngine, topology: str, agents: tuple[str, ...], speakers: list[tuple[str, str]]
) -> None:
    talk = Session(*(Agent(name, fake) for name in agents), topology=topology)
    exchanges = list(talk.round(TOLD))
    assert [(each.said.passage.hearer, each.said.passage.text) for each in exchanges] == speakers
    for at, exchange in enumerate(exchanges[1:], 1):
        # Each hears what was said before it: all of it, or what the first has.
        named = {name for told in exchange.handed for name in told.passages}
        before = {f"{earlier + 1}:{name}" for earlier in range(at) for name in ("user", speakers[earlier][0])}
        own = {held.passage.name for held in talk.mind(speakers[at][0]).held}
        assert own - {f"{n + 1}:{name}" for n in range(len(speakers)) for name in ("user", speakers[n][0])} == set()
        assert named <= before
        if topology != "fan-out":
            assert before <= own


def test_in_a_fan_out_nobody_hears_the_others(made: Made) -> None:
    talk = made(topology="fan-out")
    talk.say("vera", TOLD)
    assert talk.say("cc", ASKED).text == UNKNOWN
    assert talk.say("lyra", ASKED).text == UNKNOWN
    talk = made(topology="fan-out")
    talk.say("lyra", TOLD)
    assert [talk.say(name, ASKED).text for name in ("vera", "cc")] == ["Anna", "Anna"]


def test_in_a_relay_it_comes_by_way_of_the_one_between(made: Made) -> None:
    talk = made(topology="relay")
    talk.say("lyra", TOLD)
    exchange = talk.say("cc", ASKED)
    assert exchange.text == "Anna"
    assert [(told.sender, told.receiver) for told in exchange.handed] == [("lyra", "vera"), ("vera", "cc")]
    # What the last one knows does not go back.
    assert talk.say("lyra", ASKED).handed == ()


def test_topologies_that_cannot_be_formed_are_refused() -> None:
    with pytest.raises(UsageError, match="no topology 'ring'"):
        topology_named("ring", NAMES)
    with pytest.raises(UsageError, match="'critic' is for 2 agents, found 3"):
        topology_named("critic", NAMES)
    assert set(TOPOLOGIES) == {"table", "relay", "fan-out", "critic"}
