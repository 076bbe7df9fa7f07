"""Bytes in a store of tensors: under ids that are no tokens, in chunks of one size."""

from __future__ import annotations

from dataclasses import dataclass

import blake3
import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from unspoken.errors import TransportFailed
from unspoken.transports.lmcache_client import Server, Space

Data = UInt8[Tensor, " bytes"]


@dataclass(frozen=True)
class Blobs:
    """Room for bytes on a server.

    Args:
        space: The room, for tensors `[2, 1, tokens, width]` of uint8.
        name: Its name on the server.
        server: The server.
        size: Bytes of a chunk.
        salt: Whose they are.
    """

    space: Space
    name: str
    server: Server
    size: int
    salt: str

    @staticmethod
    def on(server: Server, size: int, salt: str) -> Blobs:
        """Return the room for bytes in chunks of a size."""
        name = f"unspoken-bytes-{size}"
        return Blobs(server.space(name, 1, size // (2 * server.chunk), torch.uint8), name, server, size, salt)

    def keep(self, label: str, data: Data) -> None:
        """Keep bytes under a label that has none yet.

        Raises:
            TransportFailed: If the store does not have all of them afterwards.
        """
        chunks = -(-len(data) // self.size)
        padded = torch.zeros(chunks * self.size, dtype=torch.uint8)
        padded[: len(data)] = data
        ids = self.ids(label, chunks)
        self.space.put(ids, padded.view(2, 1, len(ids), -1), self.salt)
        found = self.get(label, len(data))
        if found is None or not torch.equal(found, data):
            raise TransportFailed(
                f"The store at {self.server.address} has not kept all of {len(data)} bytes; there may be no room.",
                "Give it more memory (`unspoken store up --memory`), or delete something.",
            )

    def get(self, label: str, length: int) -> Data | None:
        """Return the bytes under a label; None if the store has lost some of them."""
        ids = self.ids(label, -(-length // self.size))
        found = self.space.get(ids, self.salt)
        if found is None or found.shape[2] != len(ids):
            return None
        return found.reshape(-1)[:length]

    def delete(self, label: str, length: int) -> None:
        """Delete the bytes under a label."""
        self.server.delete(self.name, self.ids(label, -(-length // self.size)), self.salt)

    def ids(self, label: str, chunks: int) -> list[int]:
        """Return what stands for tokens: for the first chunk its label, for each later one its number."""
        count = self.server.chunk
        words = np.frombuffer(blake3.blake3(label.encode()).digest(4 * count), dtype="<u4") >> 1
        return [int(word) for word in words] + [at for at in range(1, chunks) for _ in range(count)]
