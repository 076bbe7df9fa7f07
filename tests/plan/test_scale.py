"""The arithmetic of many agents, against queueing theory by hand and against a simulation."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unspoken.plan.scale import BUSY, Demand, break_even, needs, simulate

GIGABIT = 125_000_000.0


def test_the_arithmetic_is_that_of_a_worked_example() -> None:
    # 1,000 agents, 36 hand-overs an hour each: 10 a second. 1,000 tokens of 100 kB are 100 MB: 1 GB a second.
    found = needs(Demand(1000, 36.0, 1000, 100_000, kept_seconds=60.0), GIGABIT, 2000.0)
    assert found.bytes_per_second == pytest.approx(1e9)
    assert found.links == math.ceil(8 / 0.7) == 12
    assert found.bytes_kept == pytest.approx(60e9)
    assert found.seconds_to_move == pytest.approx(0.8)
    busy = 8 / 12
    assert found.seconds_waiting == pytest.approx(busy * 0.8 / (2 * (1 - busy)))
    assert found.seconds_to_read == pytest.approx(0.5)
    assert found.readers == math.ceil(10 * 0.5 / 0.7) == 8


def test_what_the_receiver_knows_does_not_move() -> None:
    whole, most = (needs(Demand(100, 36.0, 1000, 100_000, known=known), GIGABIT, 2000.0) for known in (0.0, 0.75))
    assert most.bytes_per_second == pytest.approx(whole.bytes_per_second / 4)
    assert most.readers == whole.readers


@settings(max_examples=12)
@given(st.integers(50, 2000), st.floats(2.0, 60.0), st.integers(100, 4000), st.integers(0, 1000))
def test_a_simulation_finds_what_the_arithmetic_says(agents: int, per_hour: float, tokens: int, seed: int) -> None:
    demand = Demand(agents, per_hour, tokens, 46_000, kept_seconds=30.0)
    told = needs(demand, GIGABIT, 1000.0)
    found = simulate(demand, GIGABIT, told.links, seed=seed)
    assert found.busy == pytest.approx(told.bytes_per_second / GIGABIT / told.links, rel=0.02)
    assert found.busy <= BUSY * 1.02
    assert found.seconds_waiting == pytest.approx(told.seconds_waiting, rel=0.15, abs=1e-4)
    # A cache counts from the moment it comes, so that who looks at such moments sees one more than the average.
    assert found.bytes_kept - demand.bytes_moved == pytest.approx(told.bytes_kept, rel=0.1, abs=demand.bytes_moved)


def test_averages_hide_how_long_some_wait() -> None:
    found = simulate(Demand(1000, 36.0, 1000, 100_000), GIGABIT, 12)
    assert found.seconds_waiting_p99 > 4 * found.seconds_waiting > 0


def test_break_even_is_where_moving_takes_as_long_as_reading() -> None:
    rate = break_even(18.6e6, 1.07 - 0.095)
    assert 18.6e6 / rate == pytest.approx(1.07 - 0.095)
    assert break_even(1.0, 0.0) == math.inf
