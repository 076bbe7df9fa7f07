"""The code blocks of all documents, as Markdown has them."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")])


@dataclass(frozen=True)
class Block:
    """A block: its document from the root on, its first line there, its language as written, and its text."""

    document: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"

    def commands(self) -> list[list[str]]:
        """The commands of a shell block, word by word; of a console's, those behind `$ `."""
        text = self.text.partition("<<")[0].replace("\\\n", " ")  # What stands in a here-document is no command.
        lines = [line for line in text.splitlines() if line.strip()]
        if self.language == "console":
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        return [shlex.split(part) for line in lines for part in line.partition(" #")[0].split("&&")]


def blocks(*languages: str) -> list[Block]:
    """All blocks in these languages, or in any."""
    found = []
    for path in DOCUMENTS:
        for token in MarkdownIt().parse(path.read_text(encoding="utf-8")):
            if token.type == "fence" and token.map and (not languages or token.info in languages):
                name = path.relative_to(ROOT).as_posix()
                found.append(Block(name, token.map[0] + 1, token.info, token.content))
    return found
