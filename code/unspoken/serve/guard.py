"""What stands before every route: size, rights, errors, counting and the log."""

from __future__ import annotations

import json
import logging
import secrets
import time
import traceback
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unspoken.errors import UnspokenError
from unspoken.serve.access import Right
from unspoken.serve.refusals import REFUSED, Refusal, refused
from unspoken.serve.service import Service

LOG = logging.getLogger("unspoken.serve")
UPLOAD = "/v1/caches"
_CODES = {404: "no_such_route", 405: "no_such_method", 413: "too_large"}


def _agent(right: Right) -> Any:
    """Return a dependency that gives the agent of a request, or refuses one that has not the right."""

    async def who(request: Request, authorization: Annotated[str | None, Header()] = None) -> str:
        known = _service(request).access.who(authorization)
        if known is None:
            raise Refusal(401, "No token that is known here came. Send 'Authorization: Bearer ...'.", "no_token")
        request.scope["state"]["agent"] = known.agent
        if right not in known.rights:
            raise Refusal(403, f"The token of {known.agent} is not good for {right}.", "no_right")
        return known.agent

    return Depends(who)


def _service(request: Request) -> Service:
    found: Service = request.app.state.service
    return found


TheService = Annotated[Service, Depends(_service)]
ChatAgent = Annotated[str, _agent("chat")]
CacheAgent = Annotated[str, _agent("caches")]
MetricsAgent = Annotated[str, _agent("metrics")]


class _Watched:
    """Counts requests and writes one line for each, without a word of what was said; refuses what is too large."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, number = time.perf_counter(), 500, secrets.token_hex(8)
        scope.setdefault("state", {})["agent"] = None
        is_upload = scope["path"] == UPLOAD and scope["method"] == "POST"
        most = self._service.settings.upload_bytes if is_upload else self._service.settings.body_bytes

        started = False

        async def told(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                message.setdefault("headers", []).append((b"x-request-id", number.encode()))
            await send(message)

        try:
            await self._app(scope, _limited(receive, most), told)
        except Exception as error:  # Unforeseen: told here, or a traceback would tell its words, maybe a user's.
            LOG.error(json.dumps({"request": number, "error": type(error).__name__, "where": _where(error)}))
            if not started:
                unforeseen = Refusal(500, "Something went wrong within the server.", "internal")
                await JSONResponse(unforeseen.body(), 500)(scope, receive, told)
        finally:
            self._write(scope, number, status, time.perf_counter() - began)

    def _write(self, scope: Scope, number: str, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")  # Not the path: handles are nobody's business.
        self._service.metrics.requests.labels(route, str(status)).inc()
        self._service.metrics.seconds.labels(route).observe(seconds)
        told = {"request": number, "method": scope["method"], "route": route, "status": status}
        told |= {"agent": scope["state"]["agent"], "seconds": round(seconds, 4)}
        LOG.info(json.dumps(told))


def _where(error: Exception) -> str:
    """Return the file and line an error comes from; its words may be a user's."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(last.filename).name}:{last.lineno}"


def _limited(receive: Receive, most: int) -> Receive:
    """Return what gives a request's body, no more of it than so many bytes."""
    read = 0

    async def limited() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > most:
            # Of this kind, or FastAPI would call it an error of parsing.
            raise HTTPException(413, f"The request is larger than {most} bytes")
        return message

    return limited


def install(app: FastAPI, service: Service) -> None:
    """Put the guard before an application's routes."""
    app.state.service = service

    def answered(error: Refusal) -> JSONResponse:
        message = error.message.replace(f"{service.vault.folder}/", "")
        return JSONResponse(
            Refusal(error.status, message, error.code, error.param).body(), error.status, headers=error.headers
        )

    async def failed(_: Request, error: Exception) -> JSONResponse:
        found = refused(error)
        if found is None:
            raise error
        return answered(found)

    async def invalid(_: Request, error: Any) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        return answered(Refusal(400, f"{where or 'The request'}: {first['msg']}.", "invalid_request", where or None))

    async def unknown(_: Request, error: Any) -> JSONResponse:
        code = _CODES.get(error.status_code, "invalid_request")
        found = answered(Refusal(error.status_code, f"{error.detail}.", code))
        found.headers.update(error.headers or {})
        return found

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, unknown)
    for kind in (*REFUSED, UnspokenError):
        app.add_exception_handler(kind, failed)
    app.add_middleware(_Watched, service=service)
