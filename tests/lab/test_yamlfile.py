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
    [b"name: [", b"name: \xff", b"\xff\xfe\x00\xd8x", b"[1, 2]", b"items: many", b"wishes: 3", b"[" * 5000, b""],
    ids=["not closed", "no UTF-8", "half a letter", "a list", "a word for a number", "an unknown key", "deep", "empty"],
)
def test_what_is_no_such_value_is_refused_with_a_hint(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "odd.yaml"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"(?s)The experiment .*odd\.yaml is not valid: .*See elsewhere\."):
        read_yaml(path, Experiment, "experiment", "See elsewhere.")


def test_what_cannot_be_read_is_said_to_be_so(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere.yaml"):
        with pytest.raises(StorageError, match=r"The study .* cannot be read: .*Give an existing YAML file\."):
            read_yaml(path, Experiment, "study", "")
