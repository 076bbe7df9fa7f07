"""The built site: links lead somewhere, nothing comes from another host, every module, command and run is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import click
import pytest

from .blocks import ROOT

pytestmark = pytest.mark.timeout(900)  # Building the site is most of it.

LOADED = {"src", "srcset", "data", "poster"}
"""Attributes whose target a browser fetches by itself; `href` is one where it is not a reader's to click."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make site` does."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    python_path = os.pathsep.join([str(ROOT / "code"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": python_path, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return folder


class Page(HTMLParser):
    """What a page refers to, what it has a browser fetch, and which places in it can be referred to."""

    def __init__(self) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.places: set[str] = set()
        self.drawn = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {name: value for name, value in attrs if value}
        self.places |= {named[name] for name in ("id", "name") if name in named}
        self.drawn |= "mermaid" in named.get("class", "").split()
        fetched = {value for name, value in named.items() if name in LOADED}
        if tag in ("link", "image", "use"):
            fetched |= {value for name, value in named.items() if name in ("href", "xlink:href")}
        elif "href" in named:
            self.links.add(named["href"])
        self.loaded |= fetched
        self.links |= fetched


@cache
def read(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def pages(site: Path) -> Iterator[Path]:
    return site.rglob("*.html")


def test_every_internal_link_and_anchor_leads_somewhere(site: Path) -> None:
    broken = []
    for path in pages(site):
        for link in read(path).links:
            target, anchor = urldefrag(link)
            if urlsplit(link).scheme or path.name == "404.html":
                continue
            file = (path.parent / unquote(target)).resolve() if target else path
            file = file / "index.html" if file.is_dir() else file
            known = file.is_file() and (not anchor or file.suffix != ".html" or unquote(anchor) in read(file).places)
            broken += [] if known else [(str(path.relative_to(site)), link)]
    assert broken == []


def test_no_page_has_a_browser_ask_another_host(site: Path) -> None:
    foreign = re.compile(r"^\s*(https?:)?//")
    for path in pages(site):
        assert [link for link in read(path).loaded if foreign.match(link)] == [], path
        assert not read(path).drawn, f"{path}: the theme fetches what draws such diagrams from another host"
    for path in [*site.rglob("*.css"), *site.rglob("*.svg"), *pages(site)]:
        styles = path.read_text(encoding="utf-8")
        assert not re.search(r"""(url\(\s*["']?|@import\s+["']?)(https?:)?//""", styles), path


def test_the_reference_has_every_public_module_and_every_public_name(site: Path) -> None:
    import unspoken

    shown = {place for path in site.glob("api/*.html") for place in read(path).places}
    package = ROOT / "code"
    for path in (package / "unspoken").rglob("*.py"):
        parts = path.relative_to(package).with_suffix("").parts
        module = ".".join(part for part in parts if part != "__init__")
        if parts[1] not in ("cli", "__main__") and "._" not in module:
            assert module in shown, module
    for name in unspoken.__all__:
        if not name.startswith("__"):
            assert any(place.endswith(f".{name}") for place in shown), name


def test_every_run_has_a_page_that_the_index_links_to(site: Path) -> None:
    index = read(site / "results" / "index.html").links
    runs = [path.parent.relative_to(ROOT / "results") for path in ROOT.glob("results/*/*/metrics.json")]
    assert runs
    for run in runs:
        assert f"{run.as_posix()}.html" in index
        if (ROOT / "results" / run / "report.html").is_file():
            assert f"{run.as_posix()}/report.html" in index


def commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        for each in command.list_commands(click.Context(command)):
            found = command.get_command(click.Context(command), each)
            assert found is not None
            yield from commands(found, f"{name} {each}")


def test_the_page_of_commands_has_each_with_all_its_options() -> None:
    """That it is the newest, letter by letter, is what `make check` compares."""
    from unspoken.cli import cli

    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for name, command in commands(cli, "unspoken"):
        part = text.split(f" {name}\n", 1)[1].split("\n#", 1)[0]
        for option in command.params:
            said = option.opts[0] if isinstance(option, click.Option) else option.make_metavar(click.Context(command))
            assert said in part, (name, said)
