"""All that this project knows of LMCache's insides: one release of it, spoken to from plain Python without an engine.

LMCache keeps tensors of `chunk` tokens under a chain of hashes: model name, salt, and all tokens up to there. What is
there is never written again, and of a longer sequence the longest prefix that is there comes back. Its own client
takes the geometry from a server on which an engine with a GPU has registered it; here it is registered by hand
(`lmcache/sdk/context.py` of the pinned release, `LMCacheSDKContext.register_caches`).
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import httpx
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from unspoken.errors import TransportFailed, UnspokenError, UsageError
from unspoken.transports import tensorpickle
from unspoken.transports.vllm_blocks import BLOCK

PIN = "0.5.6"
TIMEOUT_SECONDS = 10.0
HASHES = "blake3"


@dataclass(frozen=True)
class Address:
    """Where a server listens.

    Attributes:
        host: Its name or number.
        port: For tensors.
        http_port: For what else there is to ask.
    """

    host: str = "127.0.0.1"
    port: int = 15555
    http_port: int = 18081

    def __str__(self) -> str:
        return f"{self.host}:{self.port}:{self.http_port}"

    @property
    def local(self) -> bool:
        """Whether only this machine reaches it."""
        return self.host in ("127.0.0.1", "localhost")

    @property
    def http(self) -> str:
        """Where it is asked over HTTP."""
        return f"http://{self.host}:{self.http_port}"


class Server:
    """A server that speaks the pinned release, and can keep what this project gives it.

    Args:
        address: Where it listens.
        seconds: How long it may take over anything.

    Raises:
        UsageError: If the pinned release is not installed here.
        TransportFailed: If there is no such server.
    """

    def __init__(self, address: Address, seconds: float = TIMEOUT_SECONDS) -> None:
        require_pinned()
        self.address, self.seconds = address, seconds
        found, config = self._asked("lmc_version"), self._asked("config")
        with told(address):
            release, about = str(found).split("-")[0], config["mp"]
            hashes, mode = about["hash_algorithm"], about["supported_transfer_mode"]
            self.chunk = int(about["chunk_size"])
        if release != PIN or hashes != HASHES or mode not in ("engine_driven", "auto") or 2048 % self.chunk:
            raise TransportFailed(
                f"The LMCache server at {address} is release {release}, with chunks of {self.chunk} tokens, hashes "
                f"{hashes} and the mode {mode}; expected {PIN}, a power of 2 up to 2048, {HASHES}, engine_driven.",
                "Start it with `unspoken store up`.",
            )

    def space(self, name: str, layers: int, width: int, dtype: torch.dtype) -> Space:
        """Return the room for tensors `[2, layers, tokens, width]`.

        Args:
            name: Has to differ where what the tensors are differs: a server does not compare shapes.
            layers: Of a model.
            width: Elements of a token in one layer, in keys or in values.
            dtype: Of the elements.

        Raises:
            TransportFailed: If the server does not take it.
        """
        dummy = {f"layer.{at}": torch.zeros((1, 2, 1, self.chunk, width), dtype=dtype) for at in range(layers)}
        with told(self.address):
            return Space(_registered(self, name, dummy, 1, width), self)

    def put_blocks(
        self, name: str, ids: Sequence[int], blocks: Float[Tensor, "layers tokens packed"], heads: int
    ) -> None:
        """Keep blocks as vLLM's CPU backend has them (see `vllm_blocks`), where vLLM's connector to LMCache looks.

        Args:
            name: The model's name exactly as vLLM was given it.
            ids: Token ids, a multiple of the chunk.
            blocks: The columns.
            heads: Of keys and values.

        Raises:
            UsageError: If tokens and blocks do not fit together, or into whole chunks of one block.
            TransportFailed: If the server does not take it.
        """
        if len(ids) != blocks.shape[1] or len(ids) % self.chunk or self.chunk != BLOCK:
            raise UsageError(
                f"There are {len(ids)} tokens and {blocks.shape[1]} rows, in chunks of {self.chunk}.",
                f"Give as many of both, a multiple of {BLOCK}, to a store with --chunk {BLOCK}.",
            )
        head_dim = blocks.shape[2] // (2 * heads)
        shape = (1, heads, BLOCK, 2 * head_dim)
        dummy = {f"layer.{at}": torch.zeros(shape, dtype=blocks.dtype) for at in range(len(blocks))}
        with told(self.address):
            context = _registered(self, name, dummy, heads, head_dim)
            try:
                _put_blocks(context, ids, blocks)
                found = context.retrieve(list(ids))
                if found is None or not torch.equal(found, blocks):
                    raise TransportFailed(
                        f"The store at {self.address} has not kept the blocks; there may be no room, or others there.",
                        "Give it more memory, or start it anew.",
                    )
            finally:
                _ended(context)

    def delete(self, name: str, ids: Sequence[int], salt: str) -> None:
        """Remove whole chunks from the server and from what it shares with others; what is not there is no error.

        Raises:
            TransportFailed: If it does not.
        """
        with told(self.address):
            keys = _object_keys(self.chunk, name, ids, salt)
            tier = "all" if self._asked("config/adapters")["adapters"] else "l1"
            answer = httpx.request(
                "DELETE",
                f"{self.address.http}/cache/objects",
                json={"keys": [asdict(each.to_encoded_object_key()) for each in keys], "tier": tier},
                timeout=self.seconds,
            )
            answer.raise_for_status()
            if not answer.json()["ok"]:
                raise TransportFailed(f"The store has not deleted it: {answer.text[:200]}.", "Look at its log.")

    def _asked(self, what: str) -> Any:
        with told(self.address):
            answer = httpx.get(f"{self.address.http}/{what}", timeout=self.seconds)
            answer.raise_for_status()
            return answer.json()


class Space:
    """Room for tensors of one shape on a server; made by `Server.space`."""

    def __init__(self, context: Any, server: Server) -> None:
        self._context, self._server = context, server

    def put(self, ids: Sequence[int], tensor: Shaped[Tensor, "2 layers tokens width"], salt: str) -> None:
        """Keep whole chunks under token ids, each where nothing is yet: what is there stays.

        Raises:
            TransportFailed: If the server does not answer, or answers nonsense.
        """
        with told(self._server.address):
            self._context.store(tensor, ids, salt)

    def get(self, ids: Sequence[int], salt: str) -> Shaped[Tensor, "2 layers tokens width"] | None:
        """Return the longest prefix that is there, in whole chunks; None if none is.

        Raises:
            TransportFailed: If the server does not answer in time, or answers nonsense.
        """
        began = time.monotonic()
        with told(self._server.address):
            found: Tensor | None = self._context.retrieve(ids, salt)
        # Its client takes some requests that were not answered for ones that found nothing.
        if found is None and time.monotonic() - began >= self._server.seconds:
            raise TransportFailed(
                f"The LMCache server at {self._server.address} did not answer within {self._server.seconds:g} s.",
                "See whether it runs: `unspoken store status`.",
            )
        return found

    def close(self) -> None:
        """Close the connection; what was not sent yet is not sent any more."""
        with told(self._server.address):
            _ended(self._context)


def require_pinned() -> None:
    """Refuse to work with another release than the pinned one: what is used of it changes between releases.

    Raises:
        UsageError: If it is not installed.
    """
    try:
        found = version("lmcache")
    except PackageNotFoundError:
        found = "not installed"
    if found != PIN:
        raise UsageError(f"LMCache {PIN} is needed, found: {found}.", "docs/transports.md says how to install it.")
    os.environ.setdefault("LMCACHE_TRACK_USAGE", "false")
    os.environ.setdefault("LMCACHE_LOG_LEVEL", "ERROR")


def require_answer(address: Address, seconds: float) -> None:
    """Ask for a sign of life where tensors go: one malformed message ends that part of a server, and HTTP goes on.

    Raises:
        UsageError: If the pinned release is not installed here.
        TransportFailed: If there is none in time.
    """
    require_pinned()
    import zmq
    from lmcache.v1.multiprocess.transport.factory import RequestClientFactory

    waiting = zmq.Context()
    with told(address):
        client: Any = RequestClientFactory.create(f"tcp://{address.host}:{address.port}", context=waiting)
        client._message_queue_client.socket.linger = 0
        try:
            client.noop().result(timeout=seconds)
        finally:
            client.close()
            waiting.destroy(linger=0)


@contextmanager
def told(address: Address) -> Iterator[None]:
    """Turn whatever goes wrong between here and a server into one kind of error.

    Raises:
        TransportFailed: If anything does.
    """
    try:
        yield
    except UnspokenError:
        raise
    except Exception as error:  # Of many kinds: requests, ZeroMQ, msgspec, and whatever nonsense leads to.
        raise TransportFailed(
            f"The LMCache server at {address} cannot be used ({type(error).__name__}: {str(error)[:200]}).",
            "See whether it runs: `unspoken store status`.",
        ) from error


def _registered(server: Server, name: str, dummy: dict[str, Tensor], heads: int, head_dim: int) -> Any:
    """Return LMCache's client with a geometry of our own, which one block of each layer shows: one block a chunk."""
    from lmcache.sdk.context import LayoutHints, LMCacheSDKContext
    from lmcache.v1.multiprocess.transfer_context import pickle as between_hosts

    between_hosts.pickle = tensorpickle  # It would let a store run programs here.
    address = server.address
    context: Any = LMCacheSDKContext(f"tcp://{address.host}:{address.port}", address.http, name, timeout=server.seconds)
    # Where nobody takes what is sent, ZeroMQ waits for ever by default: to send it, and then to close the connection.
    socket = context._req_client._message_queue_client.socket
    socket.linger, socket.sndtimeo = 0, int(1000 * server.seconds)
    hints = {"kv_layout": "HND", "num_kv_heads": heads, "tokens_per_block": server.chunk, "head_dim": head_dim}
    try:
        return _with_geometry(context, server, name, dummy, LayoutHints(**hints))
    except BaseException:
        _ended(context)
        raise


def _ended(context: Any) -> None:
    context.close()
    context._zmq_context.destroy(linger=0)


def _with_geometry(context: Any, server: Server, name: str, dummy: dict[str, Tensor], hints: Any) -> Any:
    from lmcache.sdk.context import (
        ContiguousTransferWrapper,
        EngineDrivenTransferContext,
        create_transfer_context,
    )
    from lmcache.v1.multiprocess.transfer_context.pickle import EngineDrivenContextPickle

    context._world_size = context._num_kv_readers = context.blocks_in_chunk = 1
    transfer = create_transfer_context(dummy, instance_id=context.instance_id, req_client=context._req_client)
    transfer.register(dummy, name, 1, 1, server.seconds, layout_hints=hints)
    if not isinstance(transfer, EngineDrivenTransferContext):
        raise TransportFailed(
            f"LMCache moves tensors by {type(transfer).__name__}, expected {EngineDrivenTransferContext.__name__}.",
            "Start the server with `unspoken store up`.",
        )
    if context.shm_name and isinstance(transfer.engine_driven_context, EngineDrivenContextPickle):
        raise TransportFailed(
            f"The LMCache server at {server.address} moves tensors through the memory of its own machine alone.",
            "Start it with `unspoken store up --host` and an address that others see.",
        )
    context._transfer_ctx = ContiguousTransferWrapper(transfer.engine_driven_context, server.chunk)
    return context


def _put_blocks(context: Any, ids: Sequence[int], blocks: Tensor) -> None:
    """Fill the places that a server gives for what it lacks; its own client knows keys and values apart only."""
    request = f"unspoken-{uuid.uuid4().hex}"
    key = context._create_key(token_ids=list(ids), start=0, end=len(ids), request_id=request, worker_id=0)
    low, rows = context.transfer_ctx._context, context.chunk_size
    chunks = [blocks[:, at : at + rows].contiguous() for at in range(0, len(ids), rows)]
    try:
        found = low.prepare_store(key, context.instance_id)
        for slot, at in zip(*found, strict=True) if found is not None else ():
            slot.copy_(chunks[at])
        low.commit_store(key, context.instance_id, chunks if found is None else [])
    finally:
        context.end_session(request)


def _object_keys(chunk: int, name: str, ids: Sequence[int], salt: str) -> Sequence[Any]:
    from lmcache.v1.multiprocess.cache_control.key_resolver import resolve_object_keys
    from lmcache.v1.multiprocess.token_hasher import TokenHasher

    keys: Sequence[Any] = resolve_object_keys(TokenHasher(chunk, HASHES), name, 1, list(ids), salt)[0]
    return keys
