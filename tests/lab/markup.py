"""What a page of HTML consists of, as far as the tests of pages ask."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "br", "img", "input", "use", "path"}


class Markup(HTMLParser):
    """Collects a page's ids and checks that every element is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.open: list[str] = []
        self.scripts = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.scripts += tag == "script"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def fetched(page: str) -> list[str]:
    """Everything in a page that would make a browser leave it; names of XML do not."""
    nameless = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    links = [target for target in re.findall(r'href="([^"]*)"', page) if not target.startswith("#")]
    return re.findall(r"https?:|src=|@import|url\((?!#)", nameless) + links
