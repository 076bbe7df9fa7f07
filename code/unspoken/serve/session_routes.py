"""Routes for sessions: hold one, watch it, look into its agents' minds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.responses import StreamingResponse

from unspoken.serve.guard import ChatAgent
from unspoken.serve.routes import REFUSALS
from unspoken.serve.schema import AgentName
from unspoken.serve.talks import Talk, Talks, WantedTalk, WantedWords, picture, state

router = APIRouter(prefix="/v1/sessions", responses=REFUSALS)


def _talks(request: Request) -> Talks:
    found: Talks = request.app.state.talks
    return found


TheTalks = Annotated[Talks, Depends(_talks)]
Name = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


@router.post("", status_code=201)
async def begin(wanted: WantedTalk, talks: TheTalks, agent: ChatAgent) -> dict[str, Any]:
    """Begin a session of several agents, and by `beside` the same by another channel."""
    return state(await asyncio.wrap_future(talks.begin(wanted, agent)))


@router.get("")
async def list_all(talks: TheTalks, agent: ChatAgent) -> dict[str, Any]:
    """Your sessions."""
    return {"sessions": [state(talk) for talk in talks.of(agent)]}


@router.get("/{name}")
async def look(name: Name, talks: TheTalks, agent: ChatAgent) -> dict[str, Any]:
    """One session: agents, links, what each has in mind."""
    return state(talks.get(name, agent))


@router.post("/{name}/say")
async def say(name: Name, wanted: WantedWords, talks: TheTalks, agent: ChatAgent) -> dict[str, Any]:
    """Say something to one agent, or to `all` in turn; what happens is also seen by those who watch."""
    return {"events": await asyncio.wrap_future(talks.say(talks.get(name, agent), wanted))}


@router.get("/{name}/events", response_class=StreamingResponse)
async def watch(
    name: Name, talks: TheTalks, agent: ChatAgent, since: Annotated[int, Query(ge=0)] = 0
) -> StreamingResponse:
    """Watch a session from its beginning or from a number on, as server-sent events."""
    return StreamingResponse(_lines(talks.get(name, agent), since), media_type="text/event-stream")


@router.get("/{name}/minds/{who}")
async def mind(name: Name, who: AgentName, talks: TheTalks, agent: ChatAgent) -> dict[str, Any]:
    """What an agent has in mind: how large its values are by layer and column, and where passages stand."""
    return picture(talks.get(name, agent).session.mind(who))


@router.delete("/{name}", status_code=204)
async def end(name: Name, talks: TheTalks, agent: ChatAgent) -> None:
    """Forget a session."""
    talks.end(name, agent)


async def _lines(talk: Talk, since: int) -> AsyncIterator[str]:
    async for told in talk.watch(since):
        yield ": still here\n\n" if told is None else f"data: {json.dumps(told, ensure_ascii=False)}\n\n"
