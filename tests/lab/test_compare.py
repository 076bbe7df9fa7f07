"""Two runs side by side: paired where they can be, apart where they cannot, and told what makes them differ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from unspoken.errors import UsageError
from unspoken.lab.compare import compare, open_run
from unspoken.lab.record import RunFolder
from unspoken.lab.statistics import holm, mcnemar


@pytest.fixture
def keep(build: Callable[..., Any], tmp_path: Path) -> Callable[..., Path]:
    """Write a made-up run into a folder."""

    def kept(name: str, right: dict[str, str], finished: bool = True, **fields: Any) -> Path:
        run, path = build(right, **fields), tmp_path / name
        path.mkdir()
        folder = RunFolder.start(path, run.experiment, run.env)
        folder.append(run.samples)
        if finished:
            folder.finish(run.samples, run.metrics, "<html></html>")
        return path

    return kept


def test_the_same_questions_are_compared_one_by_one(keep: Callable[..., Path]) -> None:
    left = keep("left", {"kv": "1111000011110000", "kv-deranged": "0000000000000001", "none": "0101010101010101"})
    right = keep("right", {"kv": "1111111111110000", "kv-deranged": "0000000000000001", "text@8": "1010101010101010"})
    found = compare(open_run(left), open_run(right))
    assert (found["paired"], found["items"]) == (True, 16)
    assert list(found["arms"]) == ["kv", "kv-deranged"]
    assert (found["only_left"], found["only_right"]) == (["none"], ["text@8"])
    kv = found["arms"]["kv"]
    assert (kv["left"], kv["right"], kv["difference"]["mean"]) == (0.5, 0.75, 0.25)
    assert kv["p"] == mcnemar([False] * 4, [True] * 4) == 2 / 16
    assert {arm: of["p_holm"] for arm, of in found["arms"].items()} == holm({"kv": 2 / 16, "kv-deranged": 1.0})
    same = found["arms"]["kv-deranged"]["difference"]
    assert (same["mean"], same["low"], same["high"]) == (0, 0, 0)


def test_a_run_with_more_questions_is_compared_on_those_that_both_have(keep: Callable[..., Path]) -> None:
    found = compare(open_run(keep("left", {"kv": "1100"})), open_run(keep("right", {"kv": "11110000"})))
    assert (found["paired"], found["items"]) == (True, 4)
    assert found["arms"]["kv"]["right"] == 1.0
    assert found["differs"]["items"] == [4, 8]


def test_two_runs_are_not_judged_by_the_few_questions_they_happen_to_share(keep: Callable[..., Path]) -> None:
    one, other = open_run(keep("left", {"kv": "1100" * 10})), open_run(keep("right", {"kv": "1110" * 10}))
    held = list(other.arms["kv"].items())
    for alike, paired in ((19, False), (20, True)):
        asked = {
            item: each if at < alike else msgspec.structs.replace(each, question=f"Another: {each.question}")
            for at, (item, each) in enumerate(held)
        }
        found = compare(one, msgspec.structs.replace(other, arms={"kv": asked}))
        assert (found["paired"], found["items"]) == (paired, 20 if paired else [40, 40])


def test_the_spread_of_two_runs_apart_does_not_hang_on_their_seeds(keep: Callable[..., Path]) -> None:
    one, other = (open_run(keep(side, {"kv": "1111000010" * 8})) for side in ("left", "right"))
    asked = {item: msgspec.structs.replace(each, question="Else?") for item, each in other.arms["kv"].items()}
    widths = []
    for left, right in ((8, 7), (7, 7), (100, 3)):
        found = compare(
            msgspec.structs.replace(one, config=one.config | {"seed": left}),
            msgspec.structs.replace(other, arms={"kv": asked}, config=other.config | {"seed": right}),
        )["arms"]["kv"]["difference"]
        widths.append(found["high"] - found["low"])
    assert max(widths) < 1.15 * min(widths)


def test_other_questions_are_compared_on_average_only(keep: Callable[..., Path]) -> None:
    left, right = keep("left", {"kv": "1100" * 10}), keep("right", {"kv": "1110" * 10})
    one, other = open_run(left), open_run(right)
    asked = {
        item: msgspec.structs.replace(each, question=f"Another: {each.question}")
        for item, each in other.arms["kv"].items()
    }
    found = compare(one, msgspec.structs.replace(other, arms={"kv": asked}))
    assert (found["paired"], found["items"]) == (False, [40, 40])
    moved = found["arms"]["kv"]["difference"]
    assert moved["mean"] == pytest.approx(0.25)
    assert moved["low"] < 0.25 < moved["high"]
    assert found["arms"]["kv"]["p"] is None
    assert "p_holm" not in found["arms"]["kv"]


def test_what_makes_them_differ_is_named(keep: Callable[..., Path]) -> None:
    left = keep("left", {"kv": "1100"}, env={"model": {"name": "small", "weights": "a"}, "packages": {"torch": "2"}})
    right = keep("right", {"kv": "1100"}, env={"model": {"name": "small", "weights": "b"}, "packages": {}})
    found = compare(open_run(left), open_run(right))["differs"]
    assert found["model.weights"] == ["a", "b"]
    assert found["packages.torch"] == ["2", None]
    assert "model.name" not in found


def test_what_cannot_be_compared_is_told(keep: Callable[..., Path], tmp_path: Path) -> None:
    left = keep("left", {"kv": "1100"})
    with pytest.raises(UsageError, match="no arm in common: kv; none"):
        compare(open_run(left), open_run(keep("none", {"none": "1100"})))
    with pytest.raises(UsageError, match="is not finished"):
        open_run(keep("half", {"kv": "1100"}, finished=False))
    with pytest.raises(UsageError, match="is no run folder"):
        open_run(tmp_path)
    (left / "samples.jsonl.gz").write_bytes(b"nonsense")
    with pytest.raises(UsageError, match="is damaged"):
        open_run(left)
    (left / "cells" / "one").mkdir(parents=True)
    with pytest.raises(UsageError, match="is a sweep of several runs"):
        open_run(left)
