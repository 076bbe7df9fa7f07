"""A client of `unspoken serve`: talk, hand over, and recall, in a few calls.

    from unspoken.client import Client
    lyra, cc = Client(token=LYRA), Client(token=CC)
    told = lyra.complete("The code of the vault is 4471.", keep="content", to=["cc"])
    print(cc.complete("What is the code of the vault?", handles=[told.kept.handle]).text)

Any client of OpenAI's will do as well; this one knows caches, and needs nothing of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from unspoken.errors import ServerRefused, StorageError

if TYPE_CHECKING:
    import httpx

URL = "http://127.0.0.1:8765"
SECONDS = 150.0
CHUNK_BYTES = 1 << 20


class Kept(msgspec.Struct, frozen=True):
    """A cache that the server keeps.

    Attributes:
        handle: Its name.
        columns, bytes: Its size.
        expires_at: Seconds of UTC since 1970 at which it is gone.
        whole: Whether it is a whole conversation, or columns that can be put anywhere.
        sealed_by: The known sender that vouches for it.
    """

    handle: str
    columns: int
    bytes: int
    expires_at: float
    whole: bool
    sealed_by: str | None = None


@dataclass(frozen=True)
class Answer:
    """What an agent has said, and what is kept of it.

    Attributes:
        text: The words.
        kept: The cache, if one was to be kept.
        prompt_tokens: What the model had before it.
        skipped_tokens: Of these, what it had not to read.
    """

    text: str
    kept: Kept | None
    prompt_tokens: int
    skipped_tokens: int


@dataclass(frozen=True)
class Client:
    """One agent's access to a server.

    Args:
        url: The server.
        token: The agent's token; None where none is needed.
        model: The model's name; by default the one there is.
    """

    url: str = URL
    token: str | None = field(default=None, repr=False)
    model: str | None = None

    def complete(
        self,
        messages: str | Sequence[Mapping[str, str]],
        *,
        handles: Sequence[str] = (),
        keep: Literal["content", "whole"] | None = None,
        to: Sequence[str] = (),
        max_tokens: int = 256,
        **options: Any,
    ) -> Answer:
        """Let the model answer.

        Args:
            messages: The user's words, or messages with `role` and `content`.
            handles: Caches to start from.
            keep: What is kept of it.
            to: Agents that may use what is kept.
            max_tokens: Most tokens of the answer.
            options: More of OpenAI's options: `temperature`, `stop`, `seed` ...

        Raises:
            ServerRefused: If the server refuses, or cannot be reached.
        """
        said = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        transfer = {"handles": list(handles), "keep": keep, "to": list(to)}
        body = {"model": self.model or self.models()[0], "messages": said, "max_tokens": max_tokens}
        made = self._json("POST", "/v1/chat/completions", json=body | {"kv_transfer_params": transfer} | options)
        kept, usage = made["kv_transfer_params"], made["usage"]
        return Answer(
            made["choices"][0]["message"]["content"],
            None if kept is None else msgspec.convert(kept, Kept),
            usage["prompt_tokens"],
            usage["prompt_tokens_details"]["cached_tokens"],
        )

    def models(self) -> list[str]:
        """Return the names of the models there are.

        Raises:
            ServerRefused: If the server refuses, or cannot be reached.
        """
        return [each["id"] for each in self._json("GET", "/v1/models")["data"]]

    def put(self, path: str | Path, *, to: Sequence[str] = (), seconds: float | None = None) -> Kept:
        """Upload a cache file.

        Args:
            path: The file.
            to: Agents that may use it.
            seconds: How long it is kept.

        Raises:
            StorageError: If the file cannot be read.
            ServerRefused: If the server refuses, or cannot be reached.
        """
        params: dict[str, Any] = {"to": list(to)} | ({} if seconds is None else {"ttl_seconds": seconds})
        try:
            with open(path, "rb") as file:
                return msgspec.convert(self._json("POST", "/v1/caches", content=file, params=params), Kept)
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}.", "Give an existing cache file.") from error

    def get(self, handle: str, path: str | Path) -> None:
        """Download a cache to a file, as a whole or not at all.

        Raises:
            StorageError: If the file cannot be written.
            ServerRefused: If the server refuses, or cannot be reached.
        """
        from unspoken.trust.files import replacing

        with self._http() as http, _refusals(self.url), http.stream("GET", f"/v1/caches/{handle}") as response:
            if response.is_error:
                response.read()
            _require(response)
            with replacing(Path(path), "cache file") as file:
                for chunk in response.iter_bytes(CHUNK_BYTES):
                    file.write(chunk)

    def verify(self, handle: str) -> dict[str, Any]:
        """Return what the server knows of a cache.

        Raises:
            ServerRefused: If the server refuses, or cannot be reached.
        """
        return self._json("POST", f"/v1/caches/{handle}/verify")

    def delete(self, handle: str) -> None:
        """Remove a cache.

        Raises:
            ServerRefused: If the server refuses, or cannot be reached.
        """
        self._json("DELETE", f"/v1/caches/{handle}")

    def _json(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        with self._http() as http, _refusals(self.url):
            response = http.request(method, path, **request)
            _require(response)
            found: dict[str, Any] = response.json() if response.content else {}
            return found

    def _http(self) -> httpx.Client:
        import httpx

        headers = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=SECONDS)


def _require(response: httpx.Response) -> None:
    if not response.is_error:
        return
    try:
        error = response.json()["error"]
        message, code = str(error["message"]), str(error["code"])
    except (ValueError, KeyError, TypeError):
        message, code = f"It answered {response.status_code}.", "unknown"
    raise ServerRefused(f"The server refuses ({response.status_code}, {code}): {message}", _HINTS.get(code, _HINT))


class _refusals:  # noqa: N801 - used as a function is
    """Turns a connection that fails into an error with a hint."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        import httpx

        if isinstance(error, httpx.TransportError | httpx.InvalidURL | ValueError):
            raise ServerRefused(
                f"The server at {self._url} cannot be reached: {error or type(error).__name__}.",
                "Start it with `unspoken serve`, or give its address.",
            ) from error


_HINT = "See docs/server.md for what it refuses."
_HINTS = {
    "no_token": "Ask whoever runs the server for a token (`unspoken token`).",
    "busy": "Try again in a moment.",
    "no_such_cache": "Hand it over again.",
}
