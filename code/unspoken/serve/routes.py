"""The server's routes: completions, caches, and what there is to know of the server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from unspoken.serve.guard import CacheAgent, ChatAgent, MetricsAgent, TheService
from unspoken.serve.refusals import Refusal
from unspoken.serve.schema import AgentName, Completion, Handle, Kept, Problem
from unspoken.serve.service import Service
from unspoken.serve.stream import answer, completion, streamed

MEDIA = "application/octet-stream"
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": told}
    for status, told in {
        400: "The request is none that can be answered.",
        401: "No token that is known.",
        403: "The token is not good for this, or a seal was refused.",
        404: "No such model or cache, for this agent.",
        409: "The cache is of another model.",
        413: "The request is too large.",
        422: "The file is no sound cache.",
        429: "Too many requests wait, or the agent keeps as much as it may.",
        503: "The answer was not there in time.",
        507: "The server's disk is full or cannot be read.",
    }.items()
}
UPLOAD_BODY = {
    "requestBody": {"required": True, "content": {MEDIA: {"schema": {"type": "string", "format": "binary"}}}}
}

router = APIRouter(responses=REFUSALS)


@router.get("/health")
async def health() -> dict[str, str]:
    """Whether the server runs."""
    return {"status": "ok"}


@router.get("/v1/models")
async def models(service: TheService, _: ChatAgent) -> dict[str, Any]:
    """The model there is."""
    return {"object": "list", "data": [_model(service)]}


@router.get("/v1/models/{name:path}")
async def model(name: str, service: TheService, _: ChatAgent) -> dict[str, Any]:
    """One model."""
    _require_model(service, name)
    return _model(service)


@router.get("/metrics", response_class=Response)
async def metrics(service: TheService, _: MetricsAgent) -> Response:
    """Counters, as Prometheus reads them."""
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


@router.post("/v1/chat/completions", response_model=None)
async def complete(wanted: Completion, request: Request, service: TheService, agent: ChatAgent) -> Response:
    """Answer a conversation; `kv_transfer_params` hands caches over, in and out."""
    _require_model(service, wanted.model)
    if wanted.stream:
        return streamed(service, wanted, agent)
    return JSONResponse(completion(service.model, await answer(service, wanted, agent, request)))


@router.post("/v1/caches", status_code=201, openapi_extra=UPLOAD_BODY)
async def put(
    request: Request,
    service: TheService,
    agent: CacheAgent,
    to: Annotated[list[AgentName] | None, Query(max_length=64)] = None,
    ttl_seconds: Annotated[float | None, Query(gt=0)] = None,
) -> Kept:
    """Upload a cache file; `to` names agents that may go on from it."""
    if not service.uploads.acquire(blocking=False):
        raise Refusal(429, "Too many uploads at once. Try again in a moment.", "busy", retry_seconds=1)
    path = service.vault.new_path()
    try:
        await _receive(request, path, service, agent)
        return await run_in_threadpool(service.take, path, agent, to or (), ttl_seconds)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        service.uploads.release()


@router.get("/v1/caches/{handle}", response_class=FileResponse)
async def get(handle: Handle, service: TheService, agent: CacheAgent) -> FileResponse:
    """Download a cache file."""
    entry = service.vault.get(handle, agent)
    service.metrics.handed_over.labels("get").inc(entry.bytes)
    return FileResponse(entry.path, media_type=MEDIA, filename=entry.path.name)


@router.post("/v1/caches/{handle}/verify")
async def verify(handle: Handle, service: TheService, agent: CacheAgent) -> dict[str, Any]:
    """Look a cache through: whether it is whole, fits the model, and who vouches for it."""
    return await run_in_threadpool(service.verify, service.vault.get(handle, agent))


@router.delete("/v1/caches/{handle}", status_code=204)
async def delete(handle: Handle, service: TheService, agent: CacheAgent) -> None:
    """Remove a cache."""
    service.vault.delete(handle, agent)


async def _receive(request: Request, path: Path, service: Service, agent: str) -> None:
    """Write an upload to a file, no more of it than there is room for."""
    most, received = min(service.settings.upload_bytes, service.vault.room(agent)), 0
    with open(path, "xb") as file:
        async for chunk in request.stream():
            received += len(chunk)
            if received > most:
                raise Refusal(413, f"The upload is larger than the {most} bytes there is room for.", "too_large")
            await run_in_threadpool(file.write, chunk)


def _require_model(service: Service, name: str) -> None:
    if name != service.model:
        told = f"There is no model '{name[:100]}' here. There is '{service.model}'."
        raise Refusal(404, told, "no_such_model", "model")


def _model(service: Service) -> dict[str, Any]:
    context = service.engine.spec.context
    return {"id": service.model, "object": "model", "created": service.born, "owned_by": "unspoken", "context": context}
