"""Hooks of mkdocs: pages that are made when the site is built, and links that lead out of docs/.

The API's pages come from the package's files, those of runs from results/ (`runpages`), and some documents of the
repository stand outside docs/. Documents link as GitHub shows them; here the links are turned to the site's pages.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import runpages
from mkdocs.structure.files import File, Files
from runs import ROOT

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

PACKAGE = ROOT / "code" / "unspoken"
NOT_IN_API = {"cli", "__main__"}
"""What has a page of its own (docs/cli.md), and what starts it."""

OUTSIDE = {
    "ROADMAP.md": "roadmap.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
    "README.md": "index.md",
    "data/README.md": "data.md",
    "experiments/README.md": "experiments.md",
    "models/README.md": "models.md",
    "results/README.md": "run-folders.md",
}
"""Documents of the repository, and the pages that show them; the site has a first page of its own."""

COG = re.compile(r"^<!-- \[\[\[.*?\]\]\] -->$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"^( *)(```+).*?^\1\2$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)")


def api() -> dict[str, list[str]]:
    """Return the modules of each page of the API: a page for each package, and for each module beside them."""
    pages: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] in NOT_IN_API or any(part.startswith("_") for part in parts if part != "__init__"):
            continue
        names = [part for part in parts if part != "__init__"]
        page = ".".join(names if path.parent == PACKAGE else parts[:-1])
        pages.setdefault(page, []).append(".".join(["unspoken", *names]))
    return dict(sorted((page, sorted(modules)) for page, modules in pages.items()))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the API's pages where the navigation leaves room for them."""
    reference = next(section["Reference"] for section in config.nav or [] if "Reference" in section)
    room = next(entry for entry in reference if "API" in entry)
    room["API"] = [{page or "unspoken": _api_page(page)} for page in api()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made, the documents outside docs/, and the runs' reports."""
    for page, text in _made():
        files.append(File.generated(config, page, content=text))
    for source, page in OUTSIDE.items():
        if files.get_file_from_path(page) is None:
            files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for report in runpages.reports():
        files.append(File.generated(config, report.relative_to(ROOT).as_posix(), abs_src_path=str(report)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Take out how generated parts were made, and turn links between files to links between pages."""
    here = page.file.src_uri
    if here.startswith("api/"):
        return markdown
    outside = {shown: source for source, shown in OUTSIDE.items() if shown != "index.md"}
    base = "." if page.file.generated_by else "docs"
    folder = posixpath.dirname(outside.get(here, posixpath.join(base, posixpath.basename(here))))

    def turned(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[1]))
        shown, hash_, anchor = _shown(target).partition("#")
        if files.get_file_from_path(shown) is None and (ROOT / target).is_file():
            files.append(File.generated(config, shown, abs_src_path=str(ROOT / target)))
        return posixpath.relpath(shown, posixpath.dirname(here) or ".") + hash_ + anchor

    return "".join(part if is_code else LINK.sub(turned, part) for is_code, part in _parts(COG.sub("\n", markdown)))


def _made() -> Iterator[tuple[str, str]]:
    for page, (first, *others) in api().items():
        top = f"::: {first}\n    options: {{heading_level: 1}}"  # Its heading is the page's.
        yield _api_page(page), "\n\n".join([top, *(f"::: {module}" for module in others)])
    yield from runpages.pages()


def _api_page(page: str) -> str:
    return f"api/{page or 'unspoken'}.md"


def _shown(target: str) -> str:
    """Return the page, or the file, of the site for a path in the repository."""
    parts = target.split("/")
    if parts[0] == "docs":
        return "/".join(parts[1:])
    if parts[0] == "results" and (ROOT / target).is_dir():
        return f"{target}.md" if len(parts) > 2 else "#".join(["results/index.md", *parts[1:]])
    return OUTSIDE.get(target, target)


def _parts(markdown: str) -> Iterator[tuple[bool, str]]:
    """Cut a page at its code blocks, which are left alone."""
    at = 0
    for block in CODE.finditer(markdown):
        yield False, markdown[at : block.start()]
        yield True, block[0]
        at = block.end()
    yield False, markdown[at:]
