"""A name leads to a class, loaded on first use; installed packages may add names."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint

import pytest

from unspoken import registry
from unspoken.errors import UsageError
from unspoken.registry import Registry

ENTRIES = {"fraction": "fractions:Fraction", "decimal": "decimal:Decimal"}


@pytest.fixture
def numbers() -> Registry:
    """A registry of two built-in entries."""
    return Registry("number", "unspoken.test_numbers", ENTRIES)


def _plug(monkeypatch: pytest.MonkeyPatch, *points: tuple[str, str]) -> None:
    def found(*, group: str) -> list[EntryPoint]:
        mine = group == "unspoken.test_numbers"
        return [EntryPoint(name, value, group) for name, value in points] if mine else []

    monkeypatch.setattr(registry, "entry_points", found)


def test_a_name_leads_to_its_class(numbers: Registry) -> None:
    from fractions import Fraction

    assert numbers.load("fraction") is Fraction
    assert list(numbers) == numbers.names() == ["decimal", "fraction"]


def test_nothing_is_imported_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "this_module_is_not_there", raising=False)
    lazy = Registry("thing", "unspoken.test_numbers", {"broken": "this_module_is_not_there:X"})
    assert lazy.names() == ["broken"]
    with pytest.raises(ImportError):
        lazy.load("broken")


def test_a_misspelt_name_gets_the_nearest_one(numbers: Registry) -> None:
    with pytest.raises(UsageError, match=r"no number named 'fracton'. Did you mean 'fraction'\?"):
        numbers.load("fracton")


def test_a_name_unlike_any_other_gets_the_whole_list(numbers: Registry) -> None:
    with pytest.raises(UsageError, match=r"Known: decimal, fraction\."):
        numbers.load("zzz")


def test_installed_packages_add_names(numbers: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    import collections

    _plug(monkeypatch, ("counter", "collections:Counter"))
    assert numbers.names() == ["counter", "decimal", "fraction"]
    assert numbers.load("counter") is collections.Counter


def test_a_plug_in_cannot_take_a_built_in_name(numbers: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    from fractions import Fraction

    _plug(monkeypatch, ("fraction", "collections:Counter"))
    assert numbers.load("fraction") is Fraction
    assert numbers.names() == ["decimal", "fraction"]


def test_a_broken_plug_in_warns_and_is_left_out(numbers: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    _plug(monkeypatch, ("bad", "collections"))
    with pytest.warns(UserWarning, match="plug-in 'bad'"):
        assert numbers.names() == ["decimal", "fraction"]


def test_every_built_in_name_of_the_package_leads_somewhere() -> None:
    from unspoken.channels import CHANNELS
    from unspoken.engines import ENGINES
    from unspoken.lab.arms import CONTROLS
    from unspoken.lab.tasks import TASKS
    from unspoken.transforms import TRANSFORMS

    for table in (CHANNELS, ENGINES, CONTROLS, TASKS, TRANSFORMS):
        assert all(callable(table.load(name)) for name in table)
