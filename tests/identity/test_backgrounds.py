"""Which background a model has: the user's own before the package's, and never that in place of a damaged one."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import msgspec
import pytest

from unspoken.errors import IncompatibleCache, UsageError
from unspoken.identity import store
from unspoken.identity.background import KEY, SUFFIX, Background, BackgroundInfo
from unspoken.identity.backgrounds import SHIPPED, background_for, own_path
from unspoken.spec import ModelSpec

RESULTS = Path(__file__).resolve().parents[2] / "results" / "identity"


def test_what_comes_with_the_package_is_what_a_committed_run_learned() -> None:
    folder = Path(str(files("unspoken.identity").joinpath("backgrounds")))
    learned = {path.read_bytes() for path in RESULTS.glob("*/learned.background.safetensors")}
    shipped = [path.read_bytes() for path in folder.glob(f"*{SUFFIX}")]
    assert shipped
    assert set(shipped) <= learned


@pytest.fixture
def spec(background: Background) -> ModelSpec:
    return background.info.spec


@pytest.fixture
def shipped(background: Background, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Background:
    """One that comes with the package, told from the user's own by the number of its agents."""
    theirs = replace(background, info=msgspec.structs.replace(background.info, agents=99))
    theirs.write(tmp_path / "package" / f"{background.info.spec.weights}{SUFFIX}")
    monkeypatch.setattr("unspoken.identity.backgrounds.SHIPPED", str(tmp_path / "package"))
    return theirs


def test_the_packages_background_serves_who_has_none(shipped: Background, spec: ModelSpec, tmp_path: Path) -> None:
    assert background_for(tmp_path / "own", spec).digest() == shipped.digest()


def test_ones_own_background_comes_first(
    shipped: Background, background: Background, spec: ModelSpec, tmp_path: Path
) -> None:
    background.write(own_path(tmp_path / "own", spec))
    found = background_for(tmp_path / "own", spec)
    assert found.digest() == background.digest() != shipped.digest()


def test_a_damaged_one_is_refused_and_not_replaced_by_the_packages(
    shipped: Background, spec: ModelSpec, tmp_path: Path
) -> None:
    own_path(tmp_path, spec).write_bytes(b"nothing")
    with pytest.raises(UsageError, match="is no background"):
        background_for(tmp_path, spec)


def test_a_file_by_the_wrong_name_is_no_background_of_a_model(
    background: Background, spec: ModelSpec, tmp_path: Path
) -> None:
    other = msgspec.structs.replace(spec, weights="feed", name="another")
    background.write(own_path(tmp_path, other))
    with pytest.raises(IncompatibleCache, match="does not fit 'another'"):
        background_for(tmp_path, other)


def test_a_model_that_nobody_knows_has_none(spec: ModelSpec, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"telling agents on '{spec.name}' apart") as told:
        background_for(tmp_path, spec)
    assert "unspoken identity prepare" in told.value.hint


def test_what_comes_with_the_package_can_be_read() -> None:
    folder = files("unspoken.identity").joinpath(SHIPPED)
    found = [Path(str(each)) for each in folder.iterdir()]
    assert found
    for path in found:
        info, _ = store.read(path, KEY, BackgroundInfo, "background")
        assert path.name == f"{info.spec.weights}{SUFFIX}"
        assert Background.read(path, info.spec).info == info
