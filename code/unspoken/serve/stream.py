"""An answer as one JSON object, or piece by piece as it is made."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from concurrent.futures import CancelledError, Future
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse

from unspoken.serve.refusals import Refusal, refused
from unspoken.serve.schema import Completion
from unspoken.serve.service import Completed, Service
from unspoken.serve.worker import Expired

# How often it is looked whether the client is still there.
LOOK_SECONDS = 0.5


async def answer(service: Service, wanted: Completion, agent: str, request: Request) -> Completed:
    """Return the answer; give it up when the client has gone or its time is over.

    Raises:
        Expired: If it was not there in time, or nobody waits any more.
    """
    future = service.complete(wanted, agent)
    ends = time.monotonic() + service.settings.request_seconds
    waiting = asyncio.wrap_future(future)
    try:
        while True:
            done, _ = await asyncio.wait({waiting}, timeout=LOOK_SECONDS)
            if done:
                return waiting.result()
            if time.monotonic() > ends or await request.is_disconnected():
                raise Expired
    except (CancelledError, asyncio.CancelledError) as error:
        raise Expired from error
    finally:
        future.cancel()


def completion(model: str, made: Completed) -> dict[str, Any]:
    """Return an answer as OpenAI's clients know it."""
    message = {"role": "assistant", "content": made.text, "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": made.finish_reason, "logprobs": None}
    return _head(model, "chat.completion") | {
        "choices": [choice],
        "usage": made.usage.model_dump(),
        "kv_transfer_params": None if made.kept is None else made.kept.model_dump(),
    }


def streamed(service: Service, wanted: Completion, agent: str) -> StreamingResponse:
    """Return an answer as server-sent events.

    Raises:
        Exception: As `Service.complete` does; later problems are told within the stream.
    """
    loop, pieces = asyncio.get_running_loop(), asyncio.Queue[str | None]()

    def tell(piece: str | None) -> None:
        loop.call_soon_threadsafe(pieces.put_nowait, piece)

    future = service.complete(wanted, agent, tell)
    future.add_done_callback(lambda _: tell(None))
    return StreamingResponse(
        _events(service, wanted, future, pieces), media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
    )


async def _events(
    service: Service, wanted: Completion, future: Future[Completed], pieces: asyncio.Queue[str | None]
) -> AsyncIterator[str]:
    head = _head(service.model, "chat.completion.chunk")
    try:
        yield _event(head | _delta({"role": "assistant", "content": ""}))
        async with asyncio.timeout(service.settings.request_seconds):
            while (piece := await pieces.get()) is not None:
                yield _event(head | _delta({"content": piece}))
        made = future.result(timeout=0)
        kept = None if made.kept is None else made.kept.model_dump()
        yield _event(head | _delta({}, made.finish_reason) | {"kv_transfer_params": kept})
        if wanted.stream_options is not None and wanted.stream_options.include_usage:
            yield _event(head | {"choices": [], "usage": made.usage.model_dump()})
        yield "data: [DONE]\n\n"
    except Exception as error:
        problem = refused(Expired() if isinstance(error, TimeoutError | CancelledError) else error)
        yield _event((problem or Refusal(500, "Something went wrong within the server.", "internal")).body())
    finally:
        future.cancel()


def _head(model: str, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()), "model": model}


def _delta(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}]}


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"
