"""Figures of a study: what is drawn lies where its numbers say, nothing covers names, and the bytes stay the same."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
import pytest
from scipy.special import ndtri

from unspoken.identity.metrics import Floats, det_points
from unspoken.lab.recognition import figures
from unspoken.lab.recognition.scores import Scores

from . import made_up

METRICS = made_up.metrics()
SCORES = {name.rpartition("/")[2]: found for name, found in made_up.scores().items()}
TOLD = {name: SCORES[name] for name in ("card", "reworded", "unshared", "dialogue")}
LAYERS = {"card": METRICS["layers"], "reworded": METRICS["layers_reworded"]}
DRAWN: dict[str, Callable[[], str]] = {
    "det": lambda: figures.det(TOLD),
    "eer": lambda: figures.eer_bars(METRICS),
    "baselines": lambda: figures.against_baselines(METRICS),
    "layers": lambda: figures.by_layer(LAYERS),
    "enrolment": lambda: figures.by_enrolment(METRICS["enrolment"]),
    "map": lambda: figures.map_of_agents(METRICS["map"]),
    "histogram": lambda: figures.score_histogram(SCORES["reworded"]),
}


def group(svg: str, name: str) -> Any:
    """The group with an id."""
    (found,) = [each for each in ET.fromstring(svg).iter() if each.get("id") == name]  # noqa: S314
    return found


def path(of: Any) -> Floats:
    """The corners of a group's first path outside its definitions."""
    (found,) = [each for each in of if each.tag.endswith("path")]
    return np.array(re.findall(r"[ML] (\S+) (\S+)", found.get("d")), dtype=np.float64)


def marks(of: Any) -> Floats:
    """Where a group's marks stand."""
    uses = [each for each in of.iter() if each.tag.endswith("use")]
    return np.array([(each.get("x"), each.get("y")) for each in uses], dtype=np.float64)


def grid(svg: str, name: str, side: str) -> Floats:
    """Places of the grid's lines across (x) or up (y), in drawn units."""
    lines = []
    while f'id="{name}-{side}tick_{len(lines) + 1}"' in svg:
        tick = group(svg, f"{name}-{side}tick_{len(lines) + 1}")
        lines.append(path(tick[0])[0]["xy".index(side)])
    return np.array(lines)


def distances(points: Floats, line: Floats) -> Floats:
    """How far points lie from a line with corners."""
    start, along = line[:-1], np.diff(line, axis=0)
    length = np.maximum((along**2).sum(axis=1), 1e-12)
    share = np.clip(((points[:, None] - start) * along).sum(axis=2) / length, 0, 1)
    found: Floats = np.linalg.norm(points[:, None] - start - share[..., None] * along, axis=2).min(axis=1)
    return found


@pytest.mark.parametrize("name", DRAWN)
def test_same_figures_give_same_bytes(name: str) -> None:
    first = DRAWN[name]()
    with matplotlib.rc_context({"font.size": 30, "svg.hashsalt": "other", "axes.facecolor": "red"}):
        before = dict(matplotlib.rcParams)
        assert DRAWN[name]() == first
        assert dict(matplotlib.rcParams) == before
    assert "<dc:date>" not in first
    assert all(f'id="{name}-' in line for line in first.splitlines() if ' id="' in line)


def test_det_curves_are_those_of_the_scores() -> None:
    svg = DRAWN["det"]()
    ticks = [ndtri(tick) for tick in figures.TICKS]
    for at, name in enumerate(TOLD):
        trials = TOLD[name].trials()
        det = det_points(trials.scores, trials.target)
        if not det.miss.size:
            continue
        drawn = path(group(svg, f"det-curve-{at}"))
        across, up = grid(svg, "det", "x"), grid(svg, "det", "y")
        seen = ticks[-len(across) :]
        x = np.interp(det.false_alarm, [seen[0], seen[-1]], [across[0], across[-1]])
        y = np.interp(det.miss, [seen[0], seen[-1]], [up[0], up[-1]])
        inside = (det.false_alarm < seen[-1]) & (det.miss < seen[-1])
        assert inside.sum() > 3
        assert distances(np.stack((x, y), axis=1)[inside], drawn).max() < 0.3
        low, high = min(up), max(up)
        corners = drawn[(drawn[:, 0] < across[-1]) & (drawn[:, 1] > low) & (drawn[:, 1] < high)]
        assert distances(corners, np.stack((x, y), axis=1)).max() < 0.3


def test_det_ticks_are_normal_deviates() -> None:
    svg = DRAWN["det"]()
    across = grid(svg, "det", "x")
    ticks = ndtri(figures.TICKS[-len(across) :])
    assert len(across) > 5
    assert np.corrcoef(across, ticks)[0, 1] == pytest.approx(1, abs=1e-9)
    for tick in ("1", "5", "40"):
        assert f"<!-- {tick} -->" in svg


def test_scores_that_separate_perfectly_have_no_curve_and_the_legend_says_so() -> None:
    svg = DRAWN["det"]()
    assert "<!-- card: no error in 48 -->" in svg
    assert f"<!-- unshared: EER {100 * METRICS['conditions']['unshared']['eer']:.2f} % -->" in svg
    backwards = Scores(-SCORES["card"].scores, SCORES["card"].tested, SCORES["card"].text)
    assert "<!-- backwards: EER 100.0 %, no curve -->" in figures.det({"backwards": backwards})


def test_no_two_of_sixteen_curves_look_the_same() -> None:
    svg = figures.det({f"{at}": SCORES["memory"] for at in range(16)})
    looks = set()
    for at in range(16):
        (line,) = [each for each in group(svg, f"det-curve-{at}") if each.tag.endswith("path")]
        looks.add(line.get("style"))
    assert len(looks) == 16


def test_rates_stand_on_an_axis_of_square_roots() -> None:
    svg = DRAWN["eer"]()
    across = grid(svg, "eer", "x")
    zero, chance = across[0], across[list(figures.PERCENT).index(50)]
    rates = [of["eer"] for kind in ("told", "handed") for name, of in METRICS["conditions"].items()
             if figures.kind_of(name) == kind]  # fmt: skip
    rates += [of["eer"] for of in METRICS["nulls"].values()]
    found = [marks(group(svg, f"eer-rate-{at}"))[0] for at in range(1, len(rates) + 1)]
    expected = [zero + (chance - zero) * (rate / 0.5) ** 0.5 for rate in rates]
    assert [x for x, _ in found] == pytest.approx(expected, abs=0.01)
    assert np.diff([y for _, y in found]).min() > 10
    for name in (*METRICS["conditions"], *METRICS["nulls"], "chance", "controls: nothing to see"):
        assert f"<!-- {name} -->" in svg


def test_rates_above_chance_and_without_interval_can_be_drawn() -> None:
    of = {"card": {"eer": 0.9}, "mimicry": {"eer": 0.7, "low": 0.6, "high": 0.8}}
    svg = figures.eer_bars({"conditions": of})
    assert "<!-- 90.0 % -->" in svg
    assert "controls" not in svg


def test_baselines_stand_beside_this_signature_by_condition() -> None:
    svg = DRAWN["baselines"]()
    shown = re.findall(r"<!-- ([a-z0-9 -]+) -->", svg)
    own = [name for name in shown if name in (*made_up.BASELINES, "this signature")]
    assert own == ["this signature", *made_up.BASELINES] * len(made_up.WAYS)
    assert [name for name in shown if name in made_up.WAYS] == list(made_up.WAYS)
    assert "mimicry" not in shown


def heights(rates: list[float], drawn: Floats) -> None:
    """Check that marks stand as high as rates, on one straight axis."""
    assert len(rates) == len(drawn)
    slope, offset = np.polyfit(rates, drawn[:, 1], 1)
    assert slope < 0
    assert drawn[:, 1] == pytest.approx(slope * np.array(rates) + offset, abs=0.01)
    assert np.diff(drawn[:, 0]) == pytest.approx(np.full(len(rates) - 1, drawn[1, 0] - drawn[0, 0]), abs=0.01)


def test_layers_are_drawn_where_they_are() -> None:
    svg = DRAWN["layers"]()
    lines = [(part, condition, rates) for condition, of in LAYERS.items() for part, rates in of.items()]
    for at, (part, condition, rates) in enumerate(lines):
        heights(rates, marks(group(svg, f"layers-line-{at}")))
        assert f"<!-- {part}, {condition} -->" in svg


def test_enrolment_is_drawn_by_number_of_texts() -> None:
    # 10 stands after 9, not between 1 and 2.
    found = {"10": {"card": 0.01}, "9": {"card": 0.02}, "8": {"card": 0.05, "memory": 0.1}}
    svg = figures.by_enrolment(found)
    heights([0.05, 0.02, 0.01], marks(group(svg, "enrolment-line-0")))
    assert len(marks(group(svg, "enrolment-line-1"))) == 1
    assert "<!-- memory -->" in svg


def test_names_of_thirty_agents_do_not_cover_one_another() -> None:
    names = list(made_up.NAMES)
    # Two caches of each, all agents but the last two in one place nearly.
    points = [[0.1 * (at % 6), 0.1 * (at // 6)] for at in range(28)] + [[40.0, 40.0], [-40.0, -40.0]]
    of = {"points": points * 2, "agent": [*range(30)] * 2, "names": names, "condition": ["card"] * 60}
    svg = figures.map_of_agents(of)
    places = dict(re.findall(r"<!-- (\w+) -->\s*<g[^>]*translate\(([^)]*)\)", svg))
    assert set(of["names"]) <= set(places)
    spots = np.array([places[name].split() for name in of["names"]], dtype=np.float64)
    apart = np.abs(spots[:, None] - spots)
    # Drawn units are points: letters are some 8 of them high, and no name is narrower than 15.
    covered = (apart[..., 1] < 8) & (apart[..., 0] < 15)
    assert covered.sum() == len(spots)


def test_every_cache_is_on_the_map_in_its_agents_colour() -> None:
    of = METRICS["map"]
    svg = DRAWN["map"]()
    drawn = [each for each in group(svg, "map-axes_1").iter() if each.tag.endswith("use")]
    colours = [re.search(r"fill: (#\w+)", each.get("style", "")) for each in drawn]
    counted = [each[1] for each in colours if each and each[1] != "#555555"]
    assert len(counted) == len(of["points"])
    assert {counted.count(each) for each in set(counted)} == {of["agent"].count(0)}
    assert len(set(counted)) == len(of["names"])


def test_histogram_counts_both_kinds_of_trials() -> None:
    svg = DRAWN["histogram"]()
    assert "<!-- the same agent, 48 trials -->" in svg
    assert "<!-- other agents, 336 trials -->" in svg
    same = Scores(np.zeros((2, 2)), np.array([0, 1]), np.array([0, 0]))
    assert figures.score_histogram(same).startswith("<svg")


def test_names_with_signs_are_drawn_as_they_are() -> None:
    odd = 'odd$<b>"&--$'
    of = METRICS["conditions"]["memory"]
    assert "<b>" not in figures.eer_bars({"conditions": {odd: of}})
    assert "<b>" not in figures.det({odd: SCORES["memory"]})
    drawn = {"points": [[0, 0], [1, 1]], "agent": [0, 0], "names": [odd], "condition": [odd, odd]}
    assert "<b>" not in figures.map_of_agents(drawn)
    assert ET.fromstring(figures.by_layer({odd: {odd: [0.5, 0.4]}})).tag.endswith("svg")  # noqa: S314
