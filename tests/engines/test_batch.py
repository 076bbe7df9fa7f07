"""The layout of a pack: every token stands at its position and sees its own past and turn, nothing else."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unspoken.engines.batch import Layout, Row, additive, lay_out, option_score

tokens = st.lists(st.integers(1, 99), min_size=1, max_size=4).map(tuple)


@st.composite
def packs(draw: st.DrawFn) -> tuple[list[dict[str, Any]], int]:
    """Fields of some turns on some pasts that stand side by side, several turns perhaps on one; and all columns.

    Plain data: shape checking draws random numbers when a `Row` is made, which a strategy must not do.
    """
    sizes = draw(st.lists(st.integers(0, 5), min_size=1, max_size=3))
    edges = [sum(sizes[:at]) for at in range(len(sizes) + 1)]
    pasts = [range(edges[at], edges[at + 1]) for at in range(len(sizes))]
    rows = draw(
        st.lists(
            st.fixed_dictionaries(
                {
                    "past": st.sampled_from([range(0), *pasts]),
                    "token_ids": tokens,
                    "options": st.lists(tokens, max_size=3).map(tuple),
                    "start": st.integers(0, 50),
                }
            ),
            min_size=1,
            max_size=4,
        )
    )
    return rows, edges[-1]


def _runs(layout: Layout, rows: list[Row]) -> list[tuple[range, list[tuple[int, ...]]]]:
    """Each turn's columns among the new ones: of its prompt, and of what is read of each option."""
    return [
        (range(last - len(row.token_ids) + 1, last + 1), list(options))
        for row, last, options in zip(rows, layout.last, layout.option_columns, strict=True)
    ]


@given(packs())
@settings(max_examples=50)
def test_every_token_sees_exactly_its_own_past_and_its_turn_up_to_itself(
    pack: tuple[list[dict[str, Any]], int],
) -> None:
    rows, columns = [Row(**fields) for fields in pack[0]], pack[1]
    layout = lay_out(rows, columns)
    seen = [set(torch.nonzero(line).flatten().tolist()) for line in layout.allowed]
    for row, (prompt, options) in zip(rows, _runs(layout, rows), strict=True):
        past = set(row.past)
        for at in prompt:
            assert seen[at] == past | {columns + other for other in range(prompt.start, at + 1)}
        whole = past | {columns + other for other in prompt}
        for option in options:
            for place, at in enumerate(option):
                assert seen[at] == whole | {columns + other for other in option[: place + 1]}


@given(packs())
@settings(max_examples=50)
def test_no_token_sees_another_turn_or_another_option(pack: tuple[list[dict[str, Any]], int]) -> None:
    rows, columns = [Row(**fields) for fields in pack[0]], pack[1]
    layout = lay_out(rows, columns)
    runs = _runs(layout, rows)
    for i, (prompt, options) in enumerate(runs):
        for j, (other_prompt, other_options) in enumerate(runs):
            strangers = [] if i == j else [*other_prompt, *(at for option in other_options for at in option)]
            for at in (*prompt, *(at for option in options for at in option)):
                assert not layout.allowed[at, [columns + other for other in strangers]].any()
        for k, option in enumerate(options):
            rivals = [columns + at for other in options[:k] + options[k + 1 :] for at in other]
            assert not layout.allowed[list(option)][:, rivals].any()


@given(packs())
@settings(max_examples=50)
def test_tokens_and_positions_are_those_of_each_turn_alone(pack: tuple[list[dict[str, Any]], int]) -> None:
    rows, columns = [Row(**fields) for fields in pack[0]], pack[1]
    layout = lay_out(rows, columns)
    ids, positions = layout.token_ids.tolist(), layout.positions.tolist()
    used: list[int] = []
    for row, (prompt, options) in zip(rows, _runs(layout, rows), strict=True):
        assert [ids[at] for at in prompt] == list(row.token_ids)
        assert [positions[at] for at in prompt] == list(range(row.start, row.start + len(prompt)))
        used += prompt
        for read, option in zip(options, row.options, strict=True):
            # The last token of an option is predicted, never read.
            assert [ids[at] for at in read] == list(option[:-1])
            after = row.start + len(prompt)
            assert [positions[at] for at in read] == list(range(after, after + len(read)))
            used += read
    assert sorted(used) == list(range(len(ids)))
    assert layout.allowed.shape == (len(ids), columns + len(ids))


def test_additive_mask_is_zero_where_allowed_and_lowest_elsewhere() -> None:
    allowed = torch.tensor([[True, False], [True, True]])
    for dtype in (torch.float32, torch.bfloat16):
        mask = additive(allowed, dtype)
        assert mask.shape == (1, 1, 2, 2)
        assert mask.dtype == dtype
        assert torch.equal(mask[0, 0] == 0, allowed)
        assert mask[0, 0, 0, 1] == torch.finfo(dtype).min


def test_option_score_adds_the_log_probabilities_of_its_tokens() -> None:
    first = torch.tensor([-1.0, -2.0, -3.0])
    read = torch.tensor([[-10.0, -20.0, -30.0], [-0.1, -0.2, -0.5]])
    assert option_score(first, read, (1, 0, 2)) == -2.0 - 10.0 - 0.5
    assert option_score(first, read[:0], (2,)) == -3.0
