"""Columns of two tokenisations of one text are matched by characters: nothing is lost, crossed or counted twice."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from unspoken.engines.capabilities import covered
from unspoken.errors import UsageError
from unspoken.fusers.align import (
    STRATEGIES,
    Alignment,
    Vocabulary,
    by_spans,
    c2c_tokens,
    first_piece,
    last_of_spans,
    longest_piece,
)

Spans = list[tuple[int, int]]
# A character of 1, 2, 3 or 4 bytes is cut into that many cells of equal size, or fewer of larger ones.
CELLS = 12
TEXTS = st.text(alphabet="ab é汉🚀", min_size=1, max_size=12)
MATCHES: dict[str, Callable[[Sequence[tuple[int, int]], Sequence[tuple[int, int]]], Alignment]] = {
    "mean": by_spans,
    "last": last_of_spans,
}


def dense(made: Alignment) -> Tensor:
    """An alignment as a matrix [columns, sent]."""
    matrix = torch.zeros(made.columns, made.sent)
    for target, source, weight in zip(made.targets, made.sources, made.weights, strict=True):
        assert matrix[target, source] == 0
        matrix[target, source] = weight
    return matrix


def rows(made: Alignment) -> list[dict[int, float]]:
    """For each of the receiver's columns, what it takes of which of the sender's."""
    return [
        {source: round(float(line[source]), 6) for source in line.nonzero().flatten().tolist()} for line in dense(made)
    ]


@st.composite
def ranges(draw: st.DrawFn) -> Spans:
    """Any ranges that do not go back: empty ones, gaps and shared characters anywhere."""
    made, before = [], (0, 0)
    for step, length in draw(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12)):
        start = before[0] + step
        before = start, max(before[1], start + length)
        made.append(before)
    return made


def alike(one: Spans, other: Spans) -> bool:
    """Whether the two can be of one text: some character is in both, or one of them covers none."""
    covers = [{at for start, stop in spans for at in range(start, stop)} for spans in (one, other)]
    return bool(covers[0] & covers[1]) or not all(covers)


@st.composite
def lengths(draw: st.DrawFn, text: str) -> list[int]:
    """A tokenisation that cuts a text between any two of its bytes."""
    size = len(text.encode())
    cuts = sorted(draw(st.sets(st.integers(1, size - 1), max_size=8))) if size > 1 else []
    return [stop - start for start, stop in zip([0, *cuts], [*cuts, size], strict=True)]


def cells(text: str, cut: Sequence[int]) -> list[set[int]]:
    """The slow way: give each token its cells of each character, by counting who holds bytes of it."""
    holders: list[list[int]] = [[] for _ in text]
    byte_of = [at for at, character in enumerate(text) for _ in character.encode()]
    byte = 0
    for token, length in enumerate(cut):
        for at in sorted(set(byte_of[byte : byte + length])):
            holders[at].append(token)
        byte += length
    owned: list[set[int]] = [set() for _ in cut]
    for at, tokens in enumerate(holders):
        each = CELLS // len(tokens)
        for place, token in enumerate(tokens):
            owned[token] |= set(range(at * CELLS + place * each, at * CELLS + (place + 1) * each))
    return owned


@settings(max_examples=40)
@given(st.data(), TEXTS)
def test_shares_are_those_of_common_characters_which_tokens_share_evenly(data: st.DataObject, text: str) -> None:
    cut = [data.draw(lengths(text)) for _ in range(2)]
    made = by_spans(*(covered(text, each) for each in cut))
    sender, receiver = (cells(text, each) for each in cut)
    counts = torch.tensor([[float(len(mine & theirs)) for theirs in sender] for mine in receiver])
    torch.testing.assert_close(dense(made), counts / counts.sum(dim=1, keepdim=True))


@settings(max_examples=40)
@given(st.data(), TEXTS)
def test_the_last_one_alone_is_the_one_with_the_last_common_cell(data: st.DataObject, text: str) -> None:
    cut = [data.draw(lengths(text)) for _ in range(2)]
    made = last_of_spans(*(covered(text, each) for each in cut))
    sender, receiver = (cells(text, each) for each in cut)
    expected = [max(at for at, theirs in enumerate(sender) if mine & theirs) for mine in receiver]
    assert made.sources.tolist() == expected
    assert made.targets.tolist() == list(range(len(receiver)))
    assert made.weights.tolist() == [1.0] * len(receiver)


@settings(max_examples=50)
@given(ranges(), ranges())
def test_every_column_counts_and_none_crosses_another(sender: Spans, receiver: Spans) -> None:
    assume(alike(sender, receiver))
    matrix = dense(by_spans(sender, receiver))
    assert matrix.shape == (len(receiver), len(sender))
    torch.testing.assert_close(matrix.sum(dim=1), torch.ones(len(receiver)))
    assert bool((matrix.sum(dim=0) > 0).all())
    taken = [line.nonzero().flatten().tolist() for line in matrix]
    assert all(before[-1] <= after[0] for before, after in itertools.pairwise(taken))


@settings(max_examples=50)
@given(ranges(), ranges())
def test_the_last_one_alone_crosses_nothing_and_is_one_of_those_of_the_mean(sender: Spans, receiver: Spans) -> None:
    assume(alike(sender, receiver))
    matrix, alone = dense(by_spans(sender, receiver)), last_of_spans(sender, receiver).sources.tolist()
    assert alone == sorted(alone)
    assert bool((matrix[range(len(receiver)), alone] > 0).all())


@pytest.mark.parametrize("how", MATCHES)
@settings(max_examples=50)
@given(ranges())
def test_equal_tokenisations_are_matched_one_to_one(how: str, spans: Spans) -> None:
    assert torch.equal(dense(MATCHES[how](spans, spans)), torch.eye(len(spans)))


@settings(max_examples=50)
@given(ranges(), ranges(), st.integers(0, 99))
def test_pooling_is_the_product_with_the_dense_matrix(sender: Spans, receiver: Spans, seed: int) -> None:
    assume(alike(sender, receiver))
    made = by_spans(sender, receiver)
    features = torch.randn(len(sender), 5, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(made.pool(features), dense(made) @ features)


# a b| cd|e   against   a| b c|de
def test_several_are_pooled_by_their_characters_and_one_is_given_to_many() -> None:
    made = by_spans([(0, 3), (3, 6), (6, 7)], [(0, 1), (1, 5), (5, 7)])
    assert rows(made) == [{0: 1.0}, {0: 0.5, 1: 0.5}, {1: 0.5, 2: 0.5}]
    assert rows(by_spans([(0, 6)], [(0, 1), (1, 3), (3, 6)])) == [{0: 1.0}] * 3
    assert rows(by_spans([(0, 1), (1, 3), (3, 4)], [(0, 4)])) == [{0: 0.25, 1: 0.5, 2: 0.25}]
    assert rows(last_of_spans([(0, 1), (1, 3), (3, 4)], [(0, 4)])) == [{2: 1.0}]


def test_parts_of_one_character_are_matched_in_order() -> None:
    four, two, three = [(0, 1)] * 4, [(0, 1)] * 2, [(0, 1), (0, 1), (0, 3)]
    assert rows(by_spans(four, two)) == [{0: 0.5, 1: 0.5}, {2: 0.5, 3: 0.5}]
    assert rows(by_spans(two, four)) == [{0: 1.0}, {0: 1.0}, {1: 1.0}, {1: 1.0}]
    assert rows(by_spans([(0, 1), (1, 3)], three)) == [{0: 1.0}, {0: 1.0}, {0: round(1 / 7, 6), 1: round(6 / 7, 6)}]


# "a  b": a|␣|␣b with ranges that hold spaces, and the same tokens with ranges that leave them out.
def test_tokens_of_spaces_are_matched_whether_ranges_hold_them_or_not() -> None:
    full, trimmed = [(0, 1), (1, 2), (2, 4)], [(0, 1), (2, 2), (3, 4)]
    one_to_one = [{0: 1.0}, {1: 1.0}, {2: 1.0}]
    assert rows(by_spans(full, trimmed)) == one_to_one
    assert rows(by_spans(trimmed, full)) == one_to_one
    assert rows(by_spans(trimmed, trimmed)) == one_to_one


def test_a_token_without_counterpart_takes_the_column_before_it_or_the_first() -> None:
    assert rows(by_spans([(0, 1), (3, 4)], [(0, 1), (1, 3), (3, 4)])) == [{0: 1.0}, {0: 1.0}, {1: 1.0}]
    assert rows(by_spans([(2, 4)], [(0, 0), (0, 2), (2, 4), (5, 6)])) == [{0: 1.0}] * 4
    # Nothing is known of how a token inside another one begins: it takes that one, as its neighbours do.
    assert rows(by_spans([(0, 1), (1, 5)], [(0, 2), (3, 3), (3, 5)])) == [{0: 0.5, 1: 0.5}, {1: 1.0}, {1: 1.0}]


def test_a_column_that_no_token_takes_joins_the_last_one_that_begins_before_its_end() -> None:
    assert rows(by_spans([(0, 3), (3, 5), (5, 6)], [(0, 3), (5, 6)])) == [{0: 0.6, 1: 0.4}, {2: 1.0}]
    assert rows(by_spans([(0, 0), (0, 3), (3, 4)], [(0, 3)])) == [{0: 0.2, 1: 0.6, 2: 0.2}]
    assert rows(by_spans([(0, 2), (2, 3)], [(2, 3)])) == [{0: round(2 / 3, 6), 1: round(1 / 3, 6)}]
    assert rows(last_of_spans([(0, 3), (3, 5), (5, 6)], [(0, 3), (5, 6)])) == [{0: 1.0}, {2: 1.0}]


def test_a_text_of_nothing_but_spaces_is_matched_though_one_side_leaves_them_out() -> None:
    assert rows(by_spans([(0, 1), (1, 3)], [(3, 3)])) == [{0: round(1 / 2, 6), 1: round(1 / 2, 6)}]


def test_pooled_columns_keep_dtype_and_gradients_and_are_summed_in_float32() -> None:
    made = by_spans([(0, 1)] * 300, [(0, 1)])
    ones = torch.ones(300, 2, dtype=torch.bfloat16)
    # 300 shares summed in bfloat16 would stop growing halfway.
    assert made.pool(ones).tolist() == [[1.0, 1.0]]
    assert made.pool(ones).dtype == torch.bfloat16
    features = torch.zeros(3, 1, requires_grad=True)
    by_spans([(0, 1), (1, 3), (3, 4)], [(0, 4)]).pool(features).sum().backward()
    assert features.grad is not None
    assert features.grad.flatten().tolist() == [0.25, 0.5, 0.25]


def test_pooling_another_number_of_columns_is_refused() -> None:
    with pytest.raises(UsageError, match=r"3 rows .* of 2 of the sender's columns"):
        by_spans([(0, 1), (1, 2)], [(0, 2)]).pool(torch.zeros(3, 4))


@pytest.mark.parametrize("how", MATCHES)
@pytest.mark.parametrize(
    ("sender", "receiver", "found"),
    [
        ([], [(0, 1)], "the sender has no token"),
        ([(0, 1)], [], "the receiver has no token"),
        ([(0, 2), (3, 4), (2, 5)], [(0, 5)], "the sender's token 2 covers characters 2 to 5, after one from 3 to 4"),
        ([(0, 3)], [(0, 3), (1, 2)], "the receiver's token 1 covers characters 1 to 2, after one from 0 to 3"),
        ([(-1, 3)], [(0, 3)], "the sender's token 0 covers characters -1 to 3"),
        ([(0, 3)], [(2, 1)], "the receiver's token 0 covers characters 2 to 1"),
        ([(0, 3), (3, 4)], [(4, 4), (5, 9)], "cover characters 0 to 4 and the receiver's 5 to 9, but none is covered"),
    ],
)
def test_what_is_not_of_one_text_is_refused(how: str, sender: Spans, receiver: Spans, found: str) -> None:
    with pytest.raises(UsageError, match=f"cannot be aligned: .*{found}"):
        MATCHES[how](sender, receiver)


@dataclass(frozen=True)
class Words:
    """A vocabulary by hand; a text is cut into the longest words from its left, what is not in it is left out."""

    words: Mapping[str, int]
    roles: Mapping[str, int]
    specials: frozenset[int] = frozenset()

    def spelt(self, token_id: int) -> str:
        return next(word for word, at in self.words.items() if at == token_id)

    def encode(self, text: str) -> tuple[int, ...]:
        found, at = [], 0
        while at < len(text):
            word = max((each for each in self.words if text.startswith(each, at)), key=len, default="")
            found += [self.words[word]] if word else []
            at += len(word) or 1
        return tuple(found)

    def find(self, written: str) -> int | None:
        return self.words.get(written)


RECEIVER = Words(
    {"<pad>": 0, "<end>": 1, "<start>": 2, "<tool>": 3, "<odd>": 4, "cat": 5, " internationalization": 6, "?!": 7},
    {"pad": 0, "eos": 1, "bos": 2},
    frozenset(range(5)),
)
PIECES = {"</s>": 11, "<s>": 12, "<unk>": 13, "<tool>": 14, "cat": 15, " inter": 16, "nation": 17, "al": 18}
SENDER = Words(PIECES | {"ization": 19}, {"eos": 11, "bos": 12, "unk": 13}, frozenset((11, 12, 13)))


def test_c2c_keeps_one_piece_of_each_token_and_loses_the_others_text() -> None:
    ids = RECEIVER.encode("cat internationalization")
    assert c2c_tokens(ids, RECEIVER, SENDER, "first") == (15, 16)
    assert c2c_tokens(ids, RECEIVER, SENDER, "longest") == (15, 19)
    assert SENDER.encode("cat internationalization") == (15, 16, 17, 18, 19)


def test_c2c_takes_the_earliest_of_equally_long_pieces() -> None:
    assert longest_piece((18, 16, 17), SENDER) == 16
    assert longest_piece((18, 17, 16), SENDER) == 17
    assert first_piece((18, 17, 16), SENDER) == 18


def test_c2c_pairs_special_tokens_by_role_then_by_what_is_written_then_with_the_unknown_one() -> None:
    # The sender has no pad, so its end stands for it; <tool> is no special token there, but written alike.
    assert c2c_tokens((0, 1, 2, 3, 4), RECEIVER, SENDER, "first") == (11, 11, 12, 14, 13)
    # A token that is the receiver's pad and its end is an end.
    both = Words(RECEIVER.words, {"pad": 1, "eos": 1}, RECEIVER.specials)
    padded = Words(SENDER.words, SENDER.roles | {"pad": 14}, SENDER.specials)
    assert c2c_tokens((1, 0), both, padded, "first") == (11, 13)
    # And where the sender has no end, it is looked for as it is written.
    endless = Words(PIECES | {"<end>": 20}, {"pad": 14})
    assert c2c_tokens((1,), both, endless, "first") == (20,)


def test_c2c_gives_the_unknown_token_or_token_0_for_what_the_sender_cannot_spell() -> None:
    assert c2c_tokens((7, 5, 7), RECEIVER, SENDER, "longest") == (13, 15, 13)
    nothing = Words({"cat": 15}, {})
    assert c2c_tokens((7, 4, 5), RECEIVER, nothing, "longest") == (0, 0, 15)


@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(max_examples=20)
@given(ids=st.lists(st.sampled_from(sorted(RECEIVER.words.values())), max_size=20))
def test_c2c_gives_exactly_one_token_for_each_whatever_stands_beside_it(strategy: str, ids: list[int]) -> None:
    made = c2c_tokens(ids, RECEIVER, SENDER, strategy)
    assert made == tuple(each for token in ids for each in c2c_tokens((token,), RECEIVER, SENDER, strategy))
    assert len(made) == len(ids)


def test_an_unknown_strategy_is_refused() -> None:
    assert isinstance(SENDER, Vocabulary)
    with pytest.raises(UsageError, match=r"no strategy 'prefix'.*first, longest"):
        c2c_tokens((5,), RECEIVER, SENDER, "prefix")


class Tokenizer:
    """A tokenizer of transformers as C2C uses it."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.specials = frozenset(inner.all_special_ids)
        self.roles = {"eos": inner.eos_token_id}

    def spelt(self, token_id: int) -> str:
        return str(self.inner.decode([token_id], clean_up_tokenization_spaces=False))

    def encode(self, text: str) -> list[int]:
        return list(self.inner.encode(text, add_special_tokens=False))

    def find(self, written: str) -> int | None:
        found = self.inner.convert_tokens_to_ids(written)
        return None if found is None else int(found)


def test_c2c_reads_parts_of_characters_as_replacement_characters(tiny_tokenizer: Callable[..., Any]) -> None:
    bytes_alone = Tokenizer(tiny_tokenizer())
    made = c2c_tokens(bytes_alone.encode("aé<|im_end|>"), bytes_alone, bytes_alone, "longest")
    lost = bytes_alone.encode("\ufffd")[0]
    assert made == (*bytes_alone.encode("a"), lost, lost, bytes_alone.roles["eos"])
