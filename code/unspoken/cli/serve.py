"""`unspoken serve`: chat completions and caches over HTTP."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

from unspoken.cli.common import model_options, opened
from unspoken.cli.recognised import recogniser
from unspoken.errors import EngineUnavailable

# Those who watch a session never end by themselves.
SHUTDOWN_SECONDS = 3


@click.command()
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Where it listens; beyond this machine with --tokens."
)
@click.option("--port", default=8765, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--tokens", type=click.Path(path_type=Path), help="File of tokens, made by `unspoken token`.")
@click.option("--require-seals", is_flag=True, help="Take uploads only if a trusted sender has sealed them.")
@click.option("--waiting", default=32, show_default=True, type=click.IntRange(1), help="Most requests that wait.")
@click.option("--together", default=8, show_default=True, type=click.IntRange(1), help="Most answered in one batch.")
@click.option(
    "--seconds", default=120.0, show_default=True, type=click.FloatRange(1), help="Longest that one may take."
)
@click.option("--upload-mb", default=512, show_default=True, type=click.IntRange(1), help="Largest upload.")
@click.option("--keep-mb", default=1024, show_default=True, type=click.IntRange(1), help="Caches of an agent together.")
@click.option("--keep-seconds", default=3600.0, show_default=True, type=click.FloatRange(1), help="Longest of one.")
@click.option("--caches", type=click.Path(path_type=Path), help="Folder of its own for caches; emptied at the start.")
@click.option("--recognise", is_flag=True, help="In sessions, say whose columns arrive (see `unspoken identity`).")
@model_options
def serve(
    host: str,
    port: int,
    tokens: Path | None,
    require_seals: bool,
    waiting: int,
    together: int,
    seconds: float,
    upload_mb: int,
    keep_mb: int,
    keep_seconds: float,
    caches: Path | None,
    recognise: bool,
    model: str,
    engine: str,
    loading: dict[str, Any],
) -> None:
    """Serve a model to OpenAI's clients, with caches handed over between the agents that use it."""
    require_extra()
    import uvicorn

    from unspoken.cli.trusting import trust_store
    from unspoken.modelstore import home
    from unspoken.serve.app import build
    from unspoken.serve.service import Service
    from unspoken.serve.settings import MB, Settings
    from unspoken.serve.vault import Limits

    settings = Settings(
        host=host,
        port=port,
        tokens=tokens,
        require_seals=require_seals,
        waiting=waiting,
        together=together,
        request_seconds=seconds,
        upload_bytes=upload_mb * MB,
        kept=Limits(bytes=keep_mb * MB, seconds=keep_seconds),
    )
    loaded, _ = opened(model, engine, loading)
    telling = recogniser(loaded) if recognise else None
    service = Service(loaded, settings, caches or home() / "served", trust_store(), telling)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("uvicorn.access").disabled = True  # It writes paths, and handles are in them.
    click.echo(f"{service.model} is served at http://{host}:{port}/v1. Ctrl+C ends it.", err=True)
    uvicorn.run(
        build(service),
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )


def require_extra() -> None:
    """Refuse to serve without the libraries for it.

    Raises:
        EngineUnavailable: If they are missing.
    """
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise EngineUnavailable(
            f"The server needs {error.name}, which is not installed.", "Run `pip install 'unspoken[serve]'`."
        ) from error
