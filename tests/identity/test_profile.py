"""What is kept of an agent: the same after a file, and of use for one model and one background only."""

from __future__ import annotations

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
from unspoken.errors import IncompatibleCache, StorageError, UsageError
from unspoken.identity import store
from unspoken.identity.calibration import Calibration
from unspoken.identity.profile import (
    KEY,
    SUFFIX,
    VERSION,
    Profile,
    ProfileInfo,
    profile_path,
    profiles_in,
    spread_of,
)

SPEC = FakeEngine().spec
INFO = ProfileInfo(
    version=VERSION,
    name="lyra",
    spec=SPEC,
    background="feed",
    caches=5,
    columns=400,
    layers=(1,),
    calibration=Calibration(2.5, -1.25),
    error_rates={"card": 0.0, "reworded": 0.0125},
)


def made(seed: int = 0, kept: int = 6, **changes: Any) -> Profile:
    generator = torch.Generator().manual_seed(seed)
    signature, deviation, spread = (
        torch.randn(shape, generator=generator) for shape in ((kept,), (2, 2, 2, 8), (2, 2, 2, 8))
    )
    return Profile(msgspec.structs.replace(INFO, **changes), signature, deviation, spread.abs())


def tensors_of(profile: Profile) -> dict[str, Tensor]:
    return {"signature": profile.signature, "deviation": profile.deviation, "spread": profile.spread}


def same(left: Profile, right: Profile) -> bool:
    pairs = zip(tensors_of(left).values(), tensors_of(right).values(), strict=True)
    return left.info == right.info and all(torch.equal(*pair) for pair in pairs)


share = st.floats(0, 1)


@given(
    st.integers(0, 1000), st.integers(1, 300), st.text(max_size=9), st.dictionaries(st.text(max_size=9), share),
    st.floats(-1e9, 1e9),
)  # fmt: skip
def test_a_profile_is_the_same_after_a_file(
    tmp_path_factory: pytest.TempPathFactory, seed: int, kept: int, name: str, rates: dict[str, float], offset: float
) -> None:
    profile = made(seed, kept, name=name, error_rates=rates, calibration=Calibration(1.0, offset))
    path = tmp_path_factory.getbasetemp() / "profiles" / "a"
    profile.write(path)
    assert same(Profile.read(path), profile)


def test_another_version_is_refused(tmp_path: Path) -> None:
    made(version=VERSION + 1).write(tmp_path / "a")
    with pytest.raises(UsageError, match=rf"{tmp_path}/a has version 2, this program reads 1") as told:
        Profile.read(tmp_path / "a")
    assert told.value.hint == "Enrol the agent anew."


@pytest.mark.parametrize("name", ["signature", "deviation", "spread"])
def test_a_part_that_is_missing_or_of_another_shape_is_refused(tmp_path: Path, name: str) -> None:
    parts = tensors_of(made())
    store.write(tmp_path / "a", KEY, INFO, {key: each for key, each in parts.items() if key != name})
    with pytest.raises(UsageError, match=f"'{name}' of the profile is missing"):
        Profile.read(tmp_path / "a")
    store.write(tmp_path / "a", KEY, INFO, parts | {name: parts[name][None]})
    with pytest.raises(UsageError, match=rf"'{name}' of the profile is \[1, "):
        Profile.read(tmp_path / "a")


def test_a_part_that_fits_another_model_is_refused(tmp_path: Path) -> None:
    wrong = msgspec.structs.replace(INFO, spec=msgspec.structs.replace(SPEC, layers=3))
    store.write(tmp_path / "a", KEY, wrong, tensors_of(made()))
    with pytest.raises(UsageError, match=r"'deviation' of the profile is \[2, 2, 2, 8\], expected \[3, 2, 2, 8\]"):
        Profile.read(tmp_path / "a")


def test_a_profile_is_for_its_model_and_its_background() -> None:
    profile = made()
    profile.require_for(SPEC, "feed")
    profile.require_for(msgspec.structs.replace(SPEC, name="called otherwise"), "feed")
    with pytest.raises(IncompatibleCache, match="weights is"):
        profile.require_for(FakeEngine(seed=1).spec, "feed")
    with pytest.raises(UsageError, match="lyra was enrolled with background feed; the one in force is beef"):
        profile.require_for(SPEC, "beef")


def test_the_spread_is_a_standard_deviation_and_none_for_one_cache() -> None:
    deviations = torch.randn((5, 2, 2, 2, 8), generator=torch.Generator().manual_seed(0))
    assert spread_of(deviations).numpy() == pytest.approx(np.std(deviations.numpy(), axis=0, ddof=1), abs=1e-6)
    alone = spread_of(deviations[:1])
    assert alone.shape == (2, 2, 2, 8)
    assert not alone.any()


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "../lyra", "a/b", "a\\b", "/lyra", "a b", "ly\0ra", "lyra\n", "Ä", "a" * 65]
)
def test_a_name_that_is_no_files_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="is no name"):
        profile_path(tmp_path, name)


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True))
def test_a_name_that_can_be_one_stays_in_its_folder(name: str) -> None:
    folder = Path("profiles")
    assert profile_path(folder, name).parent == folder
    assert profile_path(folder, name).name == f"{name}{SUFFIX}"


def test_profiles_are_found_by_name_in_the_order_asked_for(tmp_path: Path) -> None:
    for seed, name in enumerate(("vera", "cc", "lyra")):
        made(seed, name=name).write(profile_path(tmp_path, name))
    (tmp_path / "notes.txt").write_text("nothing of interest")
    assert [each.name for each in profiles_in(tmp_path)] == ["cc", "lyra", "vera"]
    (second, first) = profiles_in(tmp_path, ("vera", "cc"))
    assert same(second, made(0, name="vera"))
    assert same(first, made(1, name="cc"))
    with pytest.raises(UsageError, match="no profile of nils") as told:
        profiles_in(tmp_path, ("vera", "nils"))
    assert told.value.hint == "Enrolled are cc, lyra, vera."


@pytest.mark.parametrize("folder", ["empty", "missing"])
def test_a_folder_without_profiles_is_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    for names in ((), ("lyra",)):
        with pytest.raises(UsageError, match="There is no profile of") as told:
            profiles_in(tmp_path / folder, names)
        assert "unspoken identity enroll" in told.value.hint


def test_one_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    made().write(profile_path(tmp_path, "lyra"))
    profile_path(tmp_path, "cc").write_text("something else")
    with pytest.raises(UsageError, match=rf"cc{SUFFIX} is no profile"):
        profiles_in(tmp_path)
    profile_path(tmp_path, "cc").unlink()
    profile_path(tmp_path, "cc").mkdir()
    with pytest.raises(StorageError, match=rf"cc{SUFFIX} cannot be read"):
        profiles_in(tmp_path)
    assert same(profiles_in(tmp_path, ("lyra",))[0], made())
