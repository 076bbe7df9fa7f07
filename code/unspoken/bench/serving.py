"""`unspoken bench serve`: a server under load: who is answered, whether rightly, and what becomes of its memory.

Each request tells a code of its own and asks for it. An answer with somebody else's code is one that was mixed up.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import httpx
from rich.table import Table

from unspoken.errors import ServerRefused

SECONDS = 600.0
STAGES = 10
KEEP_EVERY = 10
RECENT = 50  # Among more codes, a wrong answer would hit one by chance.
MEMORY = "process_resident_memory_bytes "
Outcome = Literal["right", "wrong", "mixed up", "refused", "failed"]
Say = Callable[[str], None]


def measure(url: str, token: str | None, at_once: int, in_a_row: int, say: Say) -> dict[str, Any]:
    """Ask a server many things at once, then one after the other; return `{"model", "at_once", "rows"}`.

    In a row, every tenth request has its columns kept, and deletes them. Each row has how many were asked up to there,
    how they came out, the seconds, and the server's memory, where it tells it.

    Args:
        url: Where the server listens.
        token: Of an agent that may do this, if the server has tokens.
        at_once: Requests at the same time.
        in_a_row: Requests after that.
        say: Told how far it is.

    Raises:
        ServerRefused: If there is no such server, or it lets nobody in.
    """
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    draw = random.Random(1)  # noqa: S311 - the codes are no secrets
    with _refusals(url), httpx.Client(base_url=url, headers=headers, timeout=SECONDS) as client:
        model = _checked(client.get("/v1/models")).json()["data"][0]["id"]
        say(f"{at_once} at once ...")
        began = time.perf_counter()
        outcomes = asyncio.run(_all(url, headers, model, draw.sample(range(1000, 10_000), at_once)))
        together = {"requests": at_once, "outcomes": outcomes, "seconds": time.perf_counter() - began}
        rows = list(_row_by_row(client, model, draw, in_a_row, say))
    return {"model": model, "requests_in_a_row": in_a_row, "at_once": together, "rows": rows}


def table(found: dict[str, Any]) -> Table:
    """Return the figures as a table for a terminal."""
    shown = Table(title=f"{found['model']} under load")
    for name in ("requests", "right", "others", "seconds", "server's memory, MB"):
        shown.add_column(name, justify="right")
    together = found["at_once"]
    for label, each in [
        (f"{together['requests']} at once", together),
        *((str(r["requests"]), r) for r in found["rows"]),
    ]:
        others = ", ".join(f"{count} {name}" for name, count in each["outcomes"].items() if name != "right")
        memory = each.get("server_memory_bytes")
        shown.add_row(
            label,
            str(each["outcomes"].get("right", 0)),
            others or "-",
            f"{each['seconds']:.1f}",
            "-" if memory is None else f"{memory / 1e6:.0f}",
        )
    return shown


async def _all(url: str, headers: dict[str, str], model: str, codes: list[int]) -> dict[Outcome, int]:
    limits = httpx.Limits(max_connections=len(codes))
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=SECONDS, limits=limits) as client:

        async def one(code: int) -> Outcome:
            try:
                response = await client.post("/v1/chat/completions", json=_body(model, code))
            except httpx.HTTPError:
                return "failed"
            return _outcome(response, code, codes)

        return dict(Counter(await asyncio.gather(*(one(code) for code in codes))))


def _row_by_row(
    client: httpx.Client, model: str, draw: random.Random, total: int, say: Say
) -> Iterator[dict[str, Any]]:
    began, outcomes = time.perf_counter(), Counter[Outcome]()
    stages = {total * at // STAGES for at in range(1, STAGES + 1)}
    before: list[int] = []
    for number in range(1, total + 1):
        before.append(draw.randrange(1000, 10_000))
        body = _body(model, before[-1])
        if number % KEEP_EVERY == 0:
            body["kv_transfer_params"] = {"keep": "content"}
        response = client.post("/v1/chat/completions", json=body)
        outcomes[_outcome(response, before[-1], before[-RECENT:])] += 1
        if number % KEEP_EVERY == 0 and response.status_code == 200:
            _checked(client.delete(f"/v1/caches/{response.json()['kv_transfer_params']['handle']}"))
        if number in stages:
            seconds = time.perf_counter() - began
            say(f"{number} of {total} ...")
            yield {
                "requests": number,
                "outcomes": dict(outcomes),
                "seconds": seconds,
                "server_memory_bytes": _memory(client),
            }


def _body(model: str, code: int) -> dict[str, Any]:
    words = f"The code of the vault is {code}. Remember it.\n\nWhat is the code of the vault?"
    return {"model": model, "temperature": 0, "max_tokens": 12, "messages": [{"role": "user", "content": words}]}


def _outcome(response: httpx.Response, code: int, codes: list[int]) -> Outcome:
    if response.status_code == 429:
        return "refused"
    if not response.is_success:
        return "failed"
    text = str(response.json()["choices"][0]["message"]["content"])
    if str(code) in text:
        return "right"
    return "mixed up" if any(str(other) in text for other in codes) else "wrong"


def _memory(client: httpx.Client) -> int | None:
    """Return the server's resident memory, bytes; None if it does not tell it."""
    told = client.get("/metrics").text.splitlines()
    return next((int(float(line.removeprefix(MEMORY))) for line in told if line.startswith(MEMORY)), None)


def _checked(response: httpx.Response) -> httpx.Response:
    if not response.is_success:
        raise ServerRefused(
            f"The server refuses ({response.status_code}): {response.text[:200]}", "Give a --token that lets you in."
        )
    return response


@contextmanager
def _refusals(url: str) -> Iterator[None]:
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError) as error:
        raise ServerRefused(
            f"No server of this kind answers at {url} ({type(error).__name__}).", "Start one: `unspoken serve`."
        ) from error
