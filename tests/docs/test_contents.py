"""The list of contents at the head of a page names its sections, all of them and in their order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTENTS = re.compile(r"\*\*Contents\*\*:(.*?)\n\n", re.DOTALL)
PAGES = [page for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")) if CONTENTS.search(page.read_text("utf-8"))]


def anchor(heading: str) -> str:
    """Return a heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def test_pages_are_found() -> None:
    assert {"ROADMAP.md", "claims.md", "how-to.md"} <= {page.name for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_contents_name_every_section(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    listed = CONTENTS.search(text)
    assert listed is not None
    anchors = [anchor(heading) for heading in re.findall(r"^## (.*)$", text, re.MULTILINE)]
    assert re.findall(r"\]\(#([^)]+)\)", listed[1]) == anchors
