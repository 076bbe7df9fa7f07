"""What is known about a model: the same after a file, told apart by its digest, and refused where it does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unspoken.engines.fake import FakeEngine
from unspoken.errors import IncompatibleCache, UsageError
from unspoken.identity import store
from unspoken.identity.background import (
    KEY,
    STRANGERS,
    VERSION,
    Alarm,
    Background,
    BackgroundInfo,
    enrolled_as,
    normalised,
)
from unspoken.identity.calibration import Calibration
from unspoken.identity.projection import Projection, Site, unit

SPEC = FakeEngine().spec
SITES = (Site("values", 1), Site("keys", 1))
ALARMS = tuple(Alarm(llr, share) for llr, share in ((1.0, 0.01), (2.0, 0.005), (4.0, 0.001)))
INFO = BackgroundInfo(
    version=VERSION,
    spec=SPEC,
    learner="whitened",
    sites=SITES,
    cohort=("You are nobody.",),
    calibration=Calibration(2.5, -1.25),
    alarms=ALARMS,
    agents=10,
    caches=60,
    error_rates={"card": 0.0},
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def made(**changes: Any) -> Background:
    projection = Projection(normal(2, seed=1).abs(), normal(32, seed=2), normal(32, 5, seed=3).half().float())
    return Background(msgspec.structs.replace(INFO, **changes), projection, unit(normal(9, 5, seed=4)))


def test_a_background_is_the_same_after_a_file(tmp_path: Path) -> None:
    before = made()
    before.write(tmp_path / "deeper" / "a")
    after = Background.read(tmp_path / "deeper" / "a", SPEC)
    assert after.info == before.info
    for name in ("scale", "shift", "matrix"):
        assert torch.equal(getattr(after.projection, name), getattr(before.projection, name))
    assert torch.equal(after.impostors, before.impostors)
    assert after.digest() == before.digest() == made().digest()
    deviations = normal(3, 2, 2, 2, 8)
    assert torch.equal(after.signatures(deviations), before.signatures(deviations))


def test_the_digest_tells_every_part() -> None:
    first = made()
    assert len(first.digest()) == 32
    others = [
        made(version=2), made(spec=msgspec.structs.replace(SPEC, weights="beef")), made(learner="lda"),
        made(sites=SITES[::-1]), made(cohort=("You are somebody.",)), made(calibration=Calibration(2.5, -1.5)),
        made(alarms=ALARMS[:2]), made(agents=11), made(caches=61), made(error_rates={"card": 0.01}),
        replace(first, impostors=first.impostors.flip(0)),
        *(replace(first, projection=replace(first.projection, **{name: getattr(first.projection, name) + 0.5}))
          for name in ("scale", "shift", "matrix")),
    ]  # fmt: skip
    assert len({each.digest() for each in (first, *others)}) == 1 + len(others)


def test_another_models_background_is_refused(tmp_path: Path) -> None:
    made().write(tmp_path / "a")
    with pytest.raises(IncompatibleCache, match="weights is"):
        Background.read(tmp_path / "a", FakeEngine(seed=1).spec)
    assert Background.read(tmp_path / "a", msgspec.structs.replace(SPEC, name="called otherwise")).info == INFO


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "another version": ({"version": 2}, "has version 2, this program reads 1"),
    "no alarms": ({"alarms": ()}, "this program reads 1"),
    "no cohort": ({"cohort": ()}, "has no cohort"),
    "a layer too many": ({"sites": (*SITES[:1], Site("keys", 2))}, "none of the model's 2 layers"),
    "a layer below": ({"sites": (*SITES[:1], Site("keys", -1))}, "none of the model's 2 layers"),
    "a site more": ({"sites": (*SITES, Site("keys", 0))}, r"'scale' of the background is \[2\], expected \[3\]"),
    "no site": ({"sites": ()}, r"'scale' of the background is \[2\], expected \[0\]"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_a_description_that_cannot_be_used_is_refused(tmp_path: Path, name: str) -> None:
    changes, problem = BAD[name]
    made(**changes).write(tmp_path / "a")
    with pytest.raises(UsageError, match=problem):
        Background.read(tmp_path / "a", SPEC)


@pytest.mark.parametrize("name", ["scale", "shift", "matrix", "impostors"])
def test_a_part_that_is_missing_or_of_another_shape_is_refused(tmp_path: Path, name: str) -> None:
    first = made()
    parts = vars(first.projection) | {"impostors": first.impostors}
    store.write(tmp_path / "a", KEY, INFO, {key: each for key, each in parts.items() if key != name})
    with pytest.raises(UsageError, match=f"'{name}' of the background is missing"):
        Background.read(tmp_path / "a", SPEC)
    for wrong in (parts[name][:-1], parts[name][None], parts[name][..., :0]):
        if name != "impostors" or wrong.ndim != 2 or not wrong.numel():
            store.write(tmp_path / "a", KEY, INFO, parts | {name: wrong})
            with pytest.raises(UsageError, match=r"of the background is \["):
                Background.read(tmp_path / "a", SPEC)
    store.write(tmp_path / "a", KEY, INFO, parts | {"impostors": parts["impostors"][:, :-1]})
    with pytest.raises(UsageError, match=r"'impostors' of the background is \[9, 4\], expected \[9, 5\]"):
        Background.read(tmp_path / "a", SPEC)


@pytest.mark.parametrize(
    ("profiles", "expected"),
    # Each comparison may take a stranger for somebody in its part of one in a hundred.
    [(0, 1.0), (1, 1.0), (2, 2.0), (3, 4.0), (10, 4.0), (11, 4.0), (10_000, 4.0)],
)
def test_more_profiles_ask_for_more(profiles: int, expected: float) -> None:
    assert INFO.threshold(profiles) == expected


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=7, unique=True), st.integers(1, 2000))
def test_a_threshold_lets_no_more_strangers_pass_than_allowed_as_far_as_was_looked(
    llrs: list[float], profiles: int
) -> None:
    shares = (0.01, 0.005, 0.002, 0.001, 0.0005, 0.0002, 0.0001)
    alarms = tuple(map(Alarm, sorted(llrs), shares))
    info = msgspec.structs.replace(INFO, alarms=alarms)
    share = next(alarm.share for alarm in alarms if alarm.llr == info.threshold(profiles))
    assert profiles * share <= STRANGERS * (1 + 1e-9) or info.threshold(profiles) == alarms[-1].llr
    assert info.threshold(profiles) <= info.threshold(profiles + 1)


def test_an_enrolled_agent_is_the_mean_direction_of_its_caches() -> None:
    caches = [unit(normal(count, 5, seed=count)) for count in (1, 2, 4)]
    found = enrolled_as(caches)
    assert found.shape == (3, 5)
    for signature, each in zip(found.numpy(), caches, strict=True):
        mean = each.numpy().mean(axis=0)
        assert signature == pytest.approx(mean / np.linalg.norm(mean), abs=1e-6)


def test_ratios_are_normalised_cosines_on_the_calibrations_line() -> None:
    first, tests, enrolled = made(), unit(normal(4, 5, seed=7)), unit(normal(3, 5, seed=8))
    impostors = first.impostors.double().numpy()
    expected = np.zeros((4, 3))
    for at, test in enumerate(tests.double().numpy()):
        for whom, agent in enumerate(enrolled.double().numpy()):
            for side in (impostors @ test, impostors @ agent):
                expected[at, whom] += (test @ agent - side.mean()) / side.std() / 2
    assert normalised(tests, enrolled, first.impostors) == pytest.approx(expected, abs=1e-5)
    assert first.llrs(tests, enrolled) == pytest.approx(2.5 * expected - 1.25, abs=1e-5)


def test_a_signature_looks_at_its_sites_alone() -> None:
    first, deviations = made(), normal(4, 2, 2, 2, 8)
    elsewhere = deviations.clone()
    elsewhere[:, 0] = normal(4, 2, 2, 8, seed=9)
    assert torch.equal(first.signatures(elsewhere), first.signatures(deviations))
    rows = torch.cat([deviations[:, 1, 1].flatten(1), deviations[:, 1, 0].flatten(1)], dim=1)
    scaled = rows / first.projection.scale.repeat_interleave(16) - first.projection.shift
    torch.testing.assert_close(first.signatures(deviations), unit(scaled @ first.projection.matrix))
