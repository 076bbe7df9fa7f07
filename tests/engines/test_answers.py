"""How tokens are chosen and answers end, and that what is heard piece by piece is the answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unspoken.engines.answers import Answers, choose, heard_from
from unspoken.engines.protocol import Limits

END = 256
LOGITS = torch.log(torch.tensor([0.05, 0.5, 0.15, 0.3]))


def bytes_of(token_ids: Sequence[int]) -> str:
    """The text of tokens that are bytes."""
    return bytes(token_ids).decode(errors="replace")


def sure_of(token: int, size: int = END + 1) -> Tensor:
    """Logits of a model that is sure of its next token."""
    return torch.full((size,), -5.0).index_fill(0, torch.tensor(token), 5.0)


def answered(
    tokens: Sequence[int], limits: Limits, decode: object = bytes_of
) -> tuple[Answers, list[str], list[int | None]]:
    """The answer of a model that wants these tokens: as it is in the end, as it was heard, and what was taken."""
    heard: list[str] = []
    answers = Answers(1, limits, {END}, decode, lambda at, text: heard.append(text))  # type: ignore[arg-type]
    taken: list[int | None] = []
    for token in tokens:
        taken.append(answers.take(0, sure_of(token)))
        if taken[-1] is None:
            break
    return answers, heard, taken


def test_the_most_probable_token_is_taken() -> None:
    assert choose(LOGITS, Limits(), torch.Generator()) == 1
    answers, heard, taken = answered(b"Anna", Limits(9))
    assert answers.token_ids(0) == tuple(taken) == tuple(b"Anna")
    assert answers.text(0) == "Anna"
    assert heard == ["A", "n", "n", "a"]
    assert answers.going == {0}


def test_an_end_token_ends_an_answer_and_is_no_part_of_it() -> None:
    answers, heard, taken = answered([*b"Anna", END, *b"x"], Limits(9))
    assert answers.token_ids(0) == tuple(b"Anna")
    assert taken == [*b"Anna", None]
    assert "".join(heard) == answers.text(0) == "Anna"
    assert answers.going == set()


def test_an_answer_may_end_before_it_begins() -> None:
    answers, heard, taken = answered([END], Limits(9))
    assert (answers.token_ids(0), answers.text(0), heard, taken) == ((), "", [], [None])


def test_no_more_tokens_are_made_than_allowed() -> None:
    answers, heard, taken = answered(b"Anna and Bob", Limits(4))
    assert answers.token_ids(0) == tuple(b"Anna")
    # The last one is kept, and not read any more: nothing comes after it.
    assert taken == [*b"Ann", None]
    assert "".join(heard) == "Anna"
    assert answers.going == set()


def test_answers_of_one_call_end_each_for_itself() -> None:
    heard: list[tuple[int, str]] = []
    answers = Answers(3, Limits(3), {END}, bytes_of, lambda at, text: heard.append((at, text)))
    assert answers.going == {0, 1, 2}
    assert [answers.take(at, sure_of(token)) for at, token in enumerate((END, ord("b"), ord("c")))] == [None, 98, 99]
    assert answers.going == {1, 2}
    assert [answers.take(at, sure_of(token)) for at, token in ((1, END), (2, ord("d")))] == [None, 100]
    assert [answers.text(at) for at in range(3)] == ["", "b", "cd"]
    assert heard == [(1, "b"), (2, "c"), (2, "d")]


def test_a_stop_string_ends_an_answer_and_is_no_part_of_its_text() -> None:
    answers, heard, taken = answered(b"Anna.\n\nBob", Limits(20, ("\n\n",)))
    assert answers.text(0) == "".join(heard) == "Anna."
    assert answers.token_ids(0) == tuple(b"Anna.\n\n")
    assert taken[-1] is None


def test_the_first_of_several_stop_strings_cuts() -> None:
    # Both are complete with one token; the text is cut where the earlier one begins.
    parts = {0: "say ", 1: "end stop", 2: "more"}
    answers, heard, _ = answered(
        [0, 1, 2], Limits(20, ("stop", "end")), lambda ids: "".join(parts[each] for each in ids)
    )
    assert answers.text(0) == "".join(heard) == "say "
    assert answers.token_ids(0) == (0, 1)


def test_what_may_be_the_beginning_of_a_stop_string_is_held_back_until_it_is_known() -> None:
    limits = Limits(20, ("<end>",))
    _, heard, _ = answered(b"a<e", limits)
    assert heard == ["a"]
    _, heard, _ = answered(b"a<ex", limits)
    assert heard == ["a", "<ex"]
    _, heard, _ = answered(b"a<e<e", limits)
    assert heard == ["a", "<e"]  # The second one may still be the beginning.
    answers, heard, _ = answered(b"a<e<end>", limits)
    assert "".join(heard) == answers.text(0) == "a<e"


def test_what_was_held_back_is_heard_when_the_answer_ends_otherwise() -> None:
    for tokens, new_tokens in (([*b"a<e", END], 20), (list(b"a<e"), 3)):
        answers, heard, taken = answered(tokens, Limits(new_tokens, ("<end>",)))
        assert heard == ["a", "<e"]
        assert answers.text(0) == "a<e"
        assert taken[-1] is None


def test_a_letter_is_heard_when_its_last_byte_is_there() -> None:
    text = "é€🙂"
    _, heard, _ = answered(text.encode(), Limits(20))
    assert heard == list(text)


def test_an_answer_that_ends_inside_a_letter_is_heard_to_its_end() -> None:
    answers, heard, _ = answered([*"a€".encode()[:3], END], Limits(20))
    assert "".join(heard) == answers.text(0) == "a\ufffd"


# Tokens of one to three bytes, many of them parts of a letter or of a stop string.
TOKENS = st.lists(
    st.lists(st.sampled_from([*b"ab<>", *"€🙂".encode()]), min_size=1, max_size=3).map(bytes), max_size=12
)
STOPS = st.lists(st.text("ab<>€", min_size=1, max_size=3), max_size=3).map(tuple)


@given(TOKENS, STOPS, st.integers(1, 14), st.booleans())
def test_pieces_heard_are_never_taken_back_and_together_are_the_text(
    parts: list[bytes], stops: tuple[str, ...], new_tokens: int, ends: bool
) -> None:
    def decode(token_ids: Sequence[int]) -> str:
        return b"".join(parts[each] for each in token_ids).decode(errors="replace")

    answers, heard, taken = answered([*range(len(parts)), *[END] * ends], Limits(new_tokens, stops), decode)
    text = answers.text(0)
    assert all(heard)
    assert text.startswith("".join(heard))
    if not answers.going:
        assert text == "".join(heard)
        assert not any(stop in text for stop in stops)
    assert len(taken) <= new_tokens + ends
    whole = decode(range(len(parts)))
    first = min((whole.index(stop) for stop in stops if stop in whole), default=len(whole))
    assert whole[:first].startswith(text.removesuffix("\ufffd"))


def test_draws_are_the_same_for_a_seed_and_others_for_another() -> None:
    def drawn(seed: int, count: int = 40) -> list[int]:
        answers = Answers(1, Limits(count + 1, temperature=1.0, seed=seed), set(), str)
        return [int(answers.take(0, LOGITS) or 0) for _ in range(count)]

    assert drawn(5) == drawn(5)
    assert drawn(5) != drawn(6)
    assert len(set(drawn(5))) > 1


def test_what_is_drawn_for_one_does_not_depend_on_who_else_is_there() -> None:
    limits = Limits(50, temperature=1.0, seed=3)
    alone = Answers(1, limits, set(), str)
    expected = [alone.take(0, LOGITS) for _ in range(30)]
    together = Answers(3, limits, set(), str)
    found = []
    for step in range(30):
        together.take(0, LOGITS)
        if step < 10:  # The second one stops early; its neighbours do not notice.
            together.take(1, LOGITS)
        found.append(together.take(2, LOGITS))
    assert found == expected


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_as_often_as_they_are_probable(temperature: float) -> None:
    count, generator = 4000, torch.Generator().manual_seed(0)
    limits = Limits(temperature=temperature)
    found = Counter(choose(LOGITS, limits, generator) for _ in range(count))
    weights = [probability ** (1 / temperature) for probability in (0.05, 0.5, 0.15, 0.3)]
    for token, weight in enumerate(weights):
        share = weight / sum(weights)
        # Four standard deviations of a binomial distribution.
        assert abs(found[token] / count - share) < 4 * (share * (1 - share) / count) ** 0.5


@pytest.mark.parametrize(
    ("top_p", "allowed"),
    [(0.0, {1}), (0.4, {1}), (0.51, {1, 3}), (0.79, {1, 3}), (0.9, {1, 2, 3}), (1.0, {0, 1, 2, 3})],
)
def test_only_the_most_probable_tokens_that_have_the_share_together_are_drawn(top_p: float, allowed: set[int]) -> None:
    generator, limits = torch.Generator().manual_seed(0), Limits(temperature=1.0, top_p=top_p)
    found = Counter(choose(LOGITS, limits, generator) for _ in range(1000))
    assert set(found) == allowed
    shares = {token: float(LOGITS[token].exp()) for token in allowed}
    for token, share in shares.items():
        expected = share / sum(shares.values())
        assert abs(found[token] / 1000 - expected) <= 4 * (expected * (1 - expected) / 1000) ** 0.5


@pytest.mark.parametrize("temperature", [0.0, -1.0, 1e-6])
def test_without_a_temperature_nothing_is_drawn(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    assert {choose(LOGITS, Limits(temperature=temperature), generator) for _ in range(50)} == {1}


def test_choosing_leaves_the_logits_alone() -> None:
    given_logits = LOGITS.clone()
    choose(given_logits, Limits(temperature=1.0, top_p=0.5), torch.Generator())
    assert torch.equal(given_logits, LOGITS)


def test_a_hearer_of_a_later_pack_hears_the_turns_own_numbers() -> None:
    heard: list[tuple[int, str]] = []
    hearer = heard_from(lambda at, text: heard.append((at, text)), 24)
    assert hearer is not None
    hearer(0, "a")
    hearer(2, "b")
    assert heard == [(24, "a"), (26, "b")]
    assert heard_from(None, 24) is None
