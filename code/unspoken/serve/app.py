"""The application: routes behind their guard."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from unspoken import __version__
from unspoken.serve.guard import install
from unspoken.serve.page import router as page_router
from unspoken.serve.routes import router
from unspoken.serve.service import Service
from unspoken.serve.session_routes import router as session_router
from unspoken.serve.talks import Talks


def build(service: Service) -> FastAPI:
    """Return the application of a service; it ends the service when it ends."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(service.close)

    app = FastAPI(
        title="unspoken",
        version=__version__,
        summary="Chat completions, and caches handed over between agents.",
        lifespan=life,
        docs_url=None,
        redoc_url=None,
    )
    install(app, service)
    app.state.talks = Talks(service)
    for each in (router, session_router, page_router):
        app.include_router(each)
    return app
