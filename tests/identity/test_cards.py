"""Generated agents are themselves in every wording, the same again from the same seed, and different people."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unspoken.errors import UsageError
from unspoken.identity.cards import Persona, make_agents
from unspoken.identity.lexicon import FUNCTION_WORDS, lexicon, parse_lexicon, shared_words, words_of
from unspoken.identity.passages import passages

# As many as there are to be judged by the rules on words: a hundred from each of three seeds.
AGENTS = tuple(agent for seed in (0, 1, 20261125) for agent in make_agents(100, seed))
NAMES = frozenset(name.lower() for name in lexicon().names)


def _plain_stems(text: str) -> set[str]:
    """The plain rule, written apart from the code's: words of four letters and more by their first five."""
    return {word[:5] for word in re.findall(r"[a-z]{4,}", text.lower()) if word not in FUNCTION_WORDS}


def _length(text: str) -> int:
    return len(text.split())


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+", text)


def _spoken(agent: Persona) -> str:
    return " ".join(turn.words for turn in agent.dialogue)


def test_the_same_seed_gives_the_same_agents_and_another_seed_others() -> None:
    assert make_agents(60, 7) == make_agents(60, 7)
    assert {agent.card for agent in make_agents(60, 7)}.isdisjoint(agent.card for agent in make_agents(60, 8))


def test_a_seed_means_these_agents_on_every_machine() -> None:
    assert [(a.name, a.role, a.trait, a.interest, a.home) for a in make_agents(3, 0)] == [
        ("Salma", "marine biologist", "patient", "clocks", "desert"),
        ("Gwen", "baker", "meticulous", "amateur radio", "farm"),
        ("Magda", "firefighter", "superstitious", "sonnets", "port"),
    ]


@given(seed=st.integers(0, 2**32), few=st.integers(0, 144), many=st.integers(0, 144))
def test_more_agents_leave_the_first_ones_as_they_are(seed: int, few: int, many: int) -> None:
    few, many = sorted((few, many))
    assert make_agents(few, seed) == make_agents(many, seed)[:few]


@given(seed=st.integers(0, 2**32), count=st.integers(1, 144))
def test_agents_are_distinct_and_roles_interests_and_homes_are_spread_evenly(seed: int, count: int) -> None:
    agents = make_agents(count, seed)
    found = lexicon()
    assert len({agent.name for agent in agents}) == count
    assert len({(agent.role, agent.trait) for agent in agents}) == count
    for texts in ("card", "reworded", "unshared", "memory"):
        assert len({getattr(agent, texts) for agent in agents}) == count
    for field, keys in (("role", found.roles), ("interest", found.interests), ("home", found.homes)):
        given_out = Counter(getattr(agent, field) for agent in agents)
        assert given_out.keys() <= keys.keys()
        assert max(given_out.values()) - min(given_out[key] for key in keys) <= 1


def test_every_trait_comes_in_every_round_of_roles() -> None:
    found = lexicon()
    agents = make_agents(len(found.roles) * 5, 3)
    for start in range(0, len(agents), len(found.roles)):
        assert {agent.trait for agent in agents[start : start + len(found.roles)]} == found.traits.keys()


def test_excluded_names_are_not_given_out_whatever_their_case() -> None:
    first = make_agents(60, 5)
    others = make_agents(60, 5, exclude=[agent.name.upper() for agent in first] + ["nobody-of-the-lexicon"])
    assert {agent.name for agent in others}.isdisjoint(agent.name for agent in first)


def test_too_many_agents_or_fewer_than_none_are_refused() -> None:
    most = len(lexicon().names)
    assert len(make_agents(most, 0)) == most
    assert make_agents(0, 0) == ()
    with pytest.raises(UsageError, match=rf"^{most + 1} agents were asked for; there are names for 0 to {most}\."):
        make_agents(most + 1, 0)
    with pytest.raises(UsageError, match=rf"names for 0 to {most - 1}\."):
        make_agents(most, 0, exclude=[lexicon().names[0]])
    with pytest.raises(UsageError, match=r"^-1 agents"):
        make_agents(-1, 0)


def test_unshared_and_card_have_no_content_word_in_common() -> None:
    assert len(AGENTS) == 300
    for agent in AGENTS:
        assert _plain_stems(agent.card) & _plain_stems(agent.unshared) == set()
        assert shared_words(agent.card, agent.unshared) == shared_words(agent.unshared, agent.card) == frozenset()
        for key in (agent.name, agent.role, agent.trait, agent.interest, agent.home):
            assert _plain_stems(key) & _plain_stems(agent.unshared) == set()
            assert not set(words_of(key)) & set(words_of(agent.unshared))


def test_the_rule_for_shared_words_finds_those_that_are_shared() -> None:
    assert shared_words("A baker bakes.", "We bake bread") == {"baker", "bakes"}
    assert shared_words("Two bees in the town's hall", "One bee, many towns") == {"bees", "town"}
    assert shared_words("He counted whatever was there", "This is whatever counts") == {"counted"}
    assert shared_words("The sea", "A seat by the season") == frozenset()
    assert shared_words("", "Nothing") == shared_words("Something", "") == frozenset()
    for agent in AGENTS:
        planted = f"{agent.unshared} {agent.card.split()[-1]}"
        assert shared_words(planted, agent.card) or _plain_stems(agent.card.split()[-1]) == set()
        assert _plain_stems(agent.card) & _plain_stems(agent.reworded) != set()


def test_function_words_hide_nothing_that_an_agent_is() -> None:
    found = lexicon()
    keys = [key for entries in found.entries().values() for key in entries]
    assert not FUNCTION_WORDS & {word for key in keys for word in words_of(key)}
    assert not FUNCTION_WORDS & NAMES


def test_no_text_but_card_and_rewording_has_a_name() -> None:
    for agent in AGENTS:
        assert not NAMES & set(words_of(f"{agent.unshared} {agent.memory} {_spoken(agent)}"))
        for text in (agent.card, agent.reworded):
            assert NAMES & set(words_of(text)) == {agent.name.lower()}
            assert "{" not in text


def test_texts_are_as_long_as_they_should_be() -> None:
    for agent in AGENTS:
        assert 3 <= len(_sentences(agent.card)) <= 4
        assert 45 <= _length(agent.card) <= 70
        assert 45 <= _length(agent.reworded) <= 70
        assert 45 <= _length(agent.unshared) <= 70
        assert 60 <= _length(agent.memory) <= 90
        assert 70 <= _length(_spoken(agent)) <= 110


def test_a_rewording_keeps_name_role_and_trait_and_no_sentence() -> None:
    for agent in AGENTS:
        for text in (agent.card, agent.reworded):
            assert all(re.search(rf"\b{key}\b", text, re.I) for key in (agent.name, agent.role, agent.trait))
        assert not set(_sentences(agent.card)) & set(_sentences(agent.reworded))
        places = [agent.card.lower().index(key) for key in (agent.role, agent.trait, agent.interest, agent.home)]
        moved = [agent.reworded.lower().index(key) for key in (agent.role, agent.trait, agent.interest, agent.home)]
        assert places == sorted(places)
        assert moved != sorted(moved)


def test_memories_are_told_by_the_agent_without_sentences_of_its_card() -> None:
    for agent in AGENTS:
        assert not set(_sentences(agent.card)) & set(_sentences(agent.memory))
        words = set(re.findall(r"[a-z]+", agent.memory.lower()))
        assert "i" in words
        assert not {"you", "your"} & words


def test_conversations_are_three_exchanges_that_show_role_trait_and_interest_in_turn() -> None:
    for agent in AGENTS:
        assert [turn.speaker for turn in agent.dialogue] == ["user", "assistant"] * 3
        for answer, key in zip(agent.dialogue[1::2], (agent.role, agent.trait, agent.interest), strict=True):
            assert re.search(rf"\b{key}\b", answer.words, re.I)


def test_mimicry_is_the_card_and_then_names_the_other_agent() -> None:
    agents = make_agents(48, 2)
    for agent, other in pairwise(agents):
        text = agent.mimicry(other)
        assert text.startswith(f"{agent.card} ")
        asked = text.removeprefix(agent.card)
        assert agent.name not in asked
        assert re.search(rf"imitate {other.name}, (a [^aeiou]|an [aeiou])", asked)
        assert f"{other.role} who is {other.trait}" in asked


def test_no_sentence_stands_in_two_entries() -> None:
    seen: Counter[str] = Counter()
    for entries in lexicon().entries().values():
        for entry in entries.values():
            seen.update(_sentences(f"{entry.card} {entry.reworded} {entry.unshared} {entry.memory}"))
    assert [sentence for sentence, times in seen.items() if times > 1] == []


def _changed(change: Callable[[dict[str, Any]], object]) -> bytes:
    data = msgspec.to_builtins(lexicon())
    data["names"] = list(data["names"])
    change(data)
    return json.dumps(data).encode()  # Which is YAML as well.


def test_the_lexicon_that_ships_is_one() -> None:
    assert parse_lexicon(_changed(lambda data: None)) == lexicon()
    assert lexicon() is lexicon()


FAULTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "Object contains unknown field `cars`": lambda data: data.update(cars={}),
    "Object missing required field `homes`": lambda data: data.pop("homes"),
    "Object missing required field `memory`": lambda data: data["traits"]["shy"].pop("memory"),
    "Expected `object` of length >= 24": lambda data: data["roles"].pop("baker"),
    r"Expected `array` of length >= 120": lambda data: data.update(names=data["names"][:119]),
    "a name stands in it twice": lambda data: data["names"].append(data["names"][0].lower()),
    "'Anna Maria' is not one word of letters": lambda data: data["names"].append("Anna Maria"),
    "card of the home 'farm' has 3 words, 10 to 17 were expected": lambda data: data["homes"]["farm"].update(
        card="The farm here."
    ),
    "memory of the home 'farm' has 2 words": lambda data: data["homes"]["farm"].update(memory="A farm."),
    "dialogue of the trait 'shy' has 2 words": lambda data: data["traits"]["shy"].update(
        dialogue={"user": "Yes?", "assistant": "No."}
    ),
    "dialogue of the trait 'shy' lacks the key word in what the assistant says": lambda data: data["traits"]["shy"][
        "dialogue"
    ].update(
        assistant="There were fourteen of them. I prefer few, as you know; with one listener I manage quite well."
    ),
    r"card of the role 'baker' has braces that are not \{name\} exactly 1 times": lambda data: data["roles"][
        "baker"
    ].update(card="You are a baker who starts the ovens at three and sells rye loaves by seven."),
    r"unshared of the role 'baker' has braces that are not \{name\} exactly 0 times": lambda data: data["roles"][
        "baker"
    ].update(unshared="Through the night {name} kneads dough, so that a whole street can have breakfast."),
    "reworded of the trait 'shy' lacks the key word": lambda data: data["traits"]["shy"].update(
        reworded="Being quiet, you write what you would never say aloud, and you dread toasts."
    ),
    "card of the home 'farm' is not one sentence": lambda data: data["homes"]["farm"].update(
        card="You share a farm with your sister. Her geese eat far too many apples."
    ),
    "unshared of the home 'farm' does not end a sentence": lambda data: data["homes"]["farm"].update(
        unshared="Tractors, haystacks, a rooster surround the rural place. There you grew up"
    ),
    "unshared of the role 'baker' has words of a card: bakery": lambda data: data["roles"]["baker"].update(
        unshared="Through the night you knead dough in a bakery, so that others can have breakfast."
    ),
    "unshared of the trait 'shy' has words of a card: locksmiths": lambda data: data["traits"]["shy"].update(
        unshared="Crowds of locksmiths frighten you, and in meetings your voice hardly rises at all."
    ),
    "the home 'farm' has a name in its texts: gwen": lambda data: data["homes"]["farm"].update(
        memory="The geese got into the orchard again. Gwen and I herded them back across the farm by lantern."
    ),
}


@pytest.mark.parametrize("message", FAULTS)
def test_a_lexicon_that_breaks_a_rule_is_refused_with_the_rule(message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_lexicon(_changed(FAULTS[message]), "mine.yaml")
    assert caught.value.problem.startswith("The lexicon mine.yaml ")
    assert caught.value.hint


@pytest.mark.parametrize("data", [b"", b"- a\n- b\n", b"roles: [", b"\xff\xfe\xff", b"roles: {a: 1}"])
def test_what_is_no_lexicon_is_refused(data: bytes) -> None:
    with pytest.raises(UsageError, match="is not valid"):
        parse_lexicon(data)


def test_passages_are_thirty_two_of_the_right_length_on_different_subjects() -> None:
    found = passages()
    assert len(found) == len(set(found)) == 32
    for passage in found:
        assert 55 <= _length(passage) <= 80
        assert 3 <= len(_sentences(passage)) <= 4
        assert passage.endswith(".")
        assert "\n" not in passage
    openings = [_plain_stems(_sentences(passage)[0]) for passage in found]
    alike = [len(one & other) for at, one in enumerate(openings) for other in openings[:at]]
    assert max(alike) <= 3


def test_passages_name_nobody_and_speak_for_nobody() -> None:
    for passage in passages():
        assert not {"i", "me", "my", "we", "us", "our", "you", "your"} & set(re.findall(r"[a-z]+", passage.lower()))
        assert not NAMES & set(words_of(passage))
