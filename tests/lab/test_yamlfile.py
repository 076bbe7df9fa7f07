"""Files that people write for the lab: what is none is refused in words, whatever is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from unspoken.errors import StorageError, UsageError
from unspoken.lab.experiment import Experiment
from unspoken.lab.yamlfile import read_yaml


def test_a_file_is_read_as_a_value_of_the_type(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text("{name: small, items: 7}", encoding="utf-8")
    assert read_yaml(path, Experiment, "experiment", "") == Experiment(name="small", items=7)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"name: [", id="not closed"),
        pytest.param(b"name: \xff", id="no UTF-8"),
        pytest.param(b"\xff\xfe\x00\xd8x", id="half a letter"),
        pytest.param(b"[1, 2]", id="a list"),
        pytest.param(b"items: many", id="a word for a number"),
        pytest.param(b"wishes: 3", id="an unknown key"),
        pytest.param(b"[" * 5000, id="deep"),
        pytest.param(b"", id="empty"),
        pytest.param(b"name: 2024-02-30", id="no day"),
        pytest.param(b"items: 0x_", id="no number"),
        pytest.param(b"items: 50\nitems: 60", id="a key twice"),
    ],
)
def test_what_is_no_such_value_is_refused_with_a_hint(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "odd.yaml"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"(?s)The experiment .*odd\.yaml is not valid: .*See elsewhere\."):
        read_yaml(path, Experiment, "experiment", "See elsewhere.")


def test_a_key_that_stands_twice_is_named_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("name: a\ncells:\n- {model: x}\ncells:\n- {model: y}\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"the key `cells` stands on lines 2 and 4\."):
        read_yaml(path, dict, "sweep", "")


def test_anchors_and_merged_keys_are_read_as_ever(tmp_path: Path) -> None:
    path = tmp_path / "merged.yaml"
    path.write_text("root: &root {x: 0}\na: {inner: &base {<<: *root, x: 1}}\nb: {<<: *base, y: 2}\n", encoding="utf-8")
    read = read_yaml(path, dict, "file", "")
    assert (read["a"], read["b"]) == ({"inner": {"x": 1}}, {"x": 1, "y": 2})


def test_what_cannot_be_read_is_said_to_be_so(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere.yaml"):
        with pytest.raises(StorageError, match=r"The study .* cannot be read: .*Give an existing YAML file\."):
            read_yaml(path, Experiment, "study", "")
