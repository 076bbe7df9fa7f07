"""The page at `/`: plain files, and a policy that lets it ask nobody but this server."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import Response

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'"
)
KINDS = {"page.html": "text/html", "page.js": "text/javascript", "page.css": "text/css"}

router = APIRouter(include_in_schema=False)


def _file(name: str) -> Response:
    data = files("unspoken.serve.page").joinpath(name).read_bytes()
    headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
    return Response(data, media_type=KINDS[name], headers=headers)


@router.get("/")
async def page() -> Response:
    """The page."""
    return _file("page.html")


@router.get("/page.js")
async def script() -> Response:
    """What it does."""
    return _file("page.js")


@router.get("/page.css")
async def style() -> Response:
    """What it looks like."""
    return _file("page.css")
