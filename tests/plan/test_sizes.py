"""Sizes as people write them, and the refusal of what is none."""

from __future__ import annotations

import pytest

from unspoken.errors import UsageError
from unspoken.plan.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("6GB", 6_000_000_000),
        ("19.4GB", 19_400_000_000),
        ("512MiB", 536_870_912),
        ("6 gib", 6 * 2**30),
        ("0.5TB", 500_000_000_000),
        ("2000kB", 2_000_000),
        ("6442450944", 6_442_450_944),
        (" 6GB ", 6_000_000_000),
        ("0", 0),
        ("0GB", 0),
    ],
)
def test_a_size_is_read_as_it_is_written(text: str, size: int) -> None:
    assert parse_size(text, "--vram") == size


@pytest.mark.parametrize(
    "text", ["", "GB", "six", "-6GB", "+6GB", "6XB", "6G B", "19,4GB", "1e9", "nan", "inf", "6GB 2GB", "٦GB", "9" * 20]
)
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="which is no size of a memory") as caught:
        parse_size(text, "--ram")
    assert caught.value.problem.startswith("--ram is ")
    assert "19.4GB" in caught.value.hint


@pytest.mark.parametrize("text", ["6", "48", "999999", "1kB"])
def test_a_number_that_lacks_its_unit_is_not_taken_for_bytes(text: str) -> None:
    with pytest.raises(UsageError, match="no size"):
        parse_size(text, "--vram")
