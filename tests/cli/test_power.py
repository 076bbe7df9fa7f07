"""`unspoken power` says what an experiment takes, or what it can see."""

from __future__ import annotations

import pytest

from .program import Program, clear


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--points", "5"), "658 questions see a difference of 5 points with 80 % power.\n"),
        (("--items", "620"), "620 questions see differences of 5.2 points and more with 80 % power.\n"),
        (("--items", "620", "--points", "5"), "620 questions see a difference of 5 points with 77.5 % power.\n"),
        (("--items", "3"), "3 questions are too few for any difference that is possible here.\n"),
        (("--points", "5", "--per-source", "8", "--correlation", "0.1"),
         "1119 questions see a difference of 5 points with 80 % power.\n"),
    ],
)  # fmt: skip
def test_what_it_takes_is_told(unspoken: Program, arguments: tuple[str, ...], told: str) -> None:
    assert unspoken("power", *arguments).out == told


def test_the_same_is_there_for_programs(unspoken: Program) -> None:
    found = unspoken("power", "--points", "10", "--differing", "30", "--json").data
    assert (found["points"], found["power"], found["design_effect"]) == (10, 0.8, 1)
    assert 230 < found["items"] < 270


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "Neither --points nor --items is given."),
        (("--points", "30"), "leave no room for a difference of 30 points"),
        (("--points", "0.2"), "More than 20000 questions would be needed"),
    ],
)
def test_what_makes_no_sense_is_told(unspoken: Program, arguments: tuple[str, ...], problem: str) -> None:
    clear(unspoken("power", *arguments), problem)
