"""A way between a store and who uses it on which everything goes wrong that can."""

from __future__ import annotations

import random
import socket
import threading
from contextlib import suppress
from typing import Literal

Fault = Literal["none", "cut", "stall", "garble", "nonsense"]
FAULTS: tuple[Fault, ...] = ("cut", "stall", "garble", "nonsense")


class BadLine:
    """Passes on what arrives at a port to another one, until a fault strikes.

    Args:
        port: Where the store listens.
        seed: Of what is garbled, and how.
    """

    def __init__(self, port: int, seed: int) -> None:
        self._port, self._random = port, random.Random(seed)
        self.fault: Fault = "none"
        self.after = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listening.getsockname()[1])

    def strike(self, fault: Fault, after: int) -> None:
        """Let a fault happen after some more bytes."""
        self.fault, self.after = fault, after

    def heal(self) -> None:
        """Pass on everything from now on; what was connected is not any more."""
        self.fault = "none"
        opened, self._open = self._open, []
        for each in opened:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Stop listening."""
        self.heal()
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:  # It was closed.
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._port))
            except OSError:  # The store is dead.
                near.close()
                continue
            self._open += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(65_536):
                struck = self._struck(data)
                if struck is None:
                    break
                other.sendall(struck)
        for each in (one, other):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _struck(self, data: bytes) -> bytes | None:
        """Return what is passed on of some bytes; None if the connection ends here."""
        if self.fault == "none":
            return data
        passed, self.after = data[: self.after], max(0, self.after - len(data))
        rest = bytearray(data[len(passed) :])
        if not rest or self.fault == "stall":
            return passed
        if self.fault == "cut":
            return None
        if self.fault == "garble":
            rest[self._random.randrange(len(rest))] ^= 1 << self._random.randrange(8)
            return passed + bytes(rest)
        return passed + self._random.randbytes(len(rest))
