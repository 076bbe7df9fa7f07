"""What a server does, apart from HTTP: completions, and the caches they start from and leave behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unspoken.cache import KVCache
from unspoken.cachefile import peek, read_cache, write_cache
from unspoken.channels.kv import WIRE, content_columns
from unspoken.engines.protocol import Engine, Generation, Limits, Turn
from unspoken.manifest import compare, require_compatible
from unspoken.serve.access import Access
from unspoken.serve.metrics import Metrics
from unspoken.serve.prompts import Asked, Beginnings, ask, talk, whole
from unspoken.serve.schema import Completion, Kept, KVTransfer, Usage
from unspoken.serve.settings import Settings
from unspoken.serve.vault import Entry, NoSuchCache, Vault
from unspoken.serve.worker import Job, Worker
from unspoken.session.handover import Recognise
from unspoken.trust.receiving import admit
from unspoken.trust.store import TrustStore

if TYPE_CHECKING:
    from unspoken.cachefile.header import Header

ANSWER_TOKENS = 256


@dataclass(frozen=True)
class Completed:
    """An answer, what it took, and what is kept of it.

    Attributes:
        text: The words.
        finish_reason: "length" if it was cut at the most tokens, else "stop".
        usage: Tokens.
        kept: The cache that is kept.
    """

    text: str
    finish_reason: str
    usage: Usage
    kept: Kept | None


class Service:
    """One model and what its agents keep.

    Args:
        engine: The model, gated.
        settings: What it may use.
        folder: Where caches are kept; emptied.
        senders: Whose seals are known.
        recognise: In sessions, names the agent whose columns arrive.
    """

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        folder: Path,
        senders: TrustStore,
        recognise: Recognise | None = None,
    ) -> None:
        self.engine, self.settings, self.senders, self.recognise = engine, settings, senders, recognise
        self.model, self.born = engine.spec.name, int(time.time())
        self.uploads = threading.Semaphore(settings.uploads)
        self.access = Access.of(settings.tokens)
        self.worker = Worker(engine, waiting=settings.waiting, together=settings.together)
        self.vault = Vault(folder, settings.kept)
        self.metrics = Metrics(lambda: self.worker.waiting, lambda: self.worker.running, self.vault.held)
        self._beginnings = Beginnings(settings.memory_bytes)

    def complete(self, wanted: Completion, agent: str, hear: Callable[[str], None] | None = None) -> Future[Completed]:
        """Let the model answer, and return what will come of it.

        Args:
            wanted: What is asked.
            agent: Who asks.
            hear: Is told the answer piece by piece, from another thread.

        Raises:
            Busy: If too many wait.
            NoSuchCache: If a handle is none of the agent's.
            QuotaSpent: If something shall be kept, and there is no room.
            UsageError: If the messages are no conversation.
        """
        told, transfer = talk(wanted.messages), wanted.kv_transfer_params or KVTransfer()
        entries = [self.vault.get(handle, agent) for handle in transfer.handles]
        if transfer.keep is not None:
            self.vault.room(agent)
        asked: list[Asked] = []

        def prepare(engine: Engine) -> Turn:
            if not all(entry.path.exists() for entry in entries):
                raise NoSuchCache  # Its time was over while the request waited.
            given = [read_cache(entry.path, header=entry.header) for entry in entries]
            asked.append(ask(engine, told, given, self._beginnings, agent))
            return asked[-1].turn

        def finish(engine: Engine, turn: Turn, made: Generation) -> Completed:
            kept = self._keep(turn, made, transfer, agent, told.system)
            return self._completed(asked[-1], made, wanted, kept)

        return self.worker.submit(
            Job(prepare, finish, _limits(wanted), time.monotonic() + self.settings.request_seconds, hear)
        )

    def take(self, path: Path, agent: str, to: Sequence[str], seconds: float | None) -> Kept:
        """Take in an uploaded file that lies at a new path of the vault; what is refused is removed.

        Raises:
            CacheFileError: If it is no sound cache.
            SealRefused: If seals are required and it has none of a known sender.
            IncompatibleCache: If another model made it.
            QuotaSpent: If the agent may not keep as much.
        """
        try:
            header, sealed_by = self._admitted(path)
            require_compatible(header.manifest.cache.spec, self.engine.spec)
            read_cache(path, header=header)  # Every tensor is compared with its digest, and looked through for NaN.
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        entry = self.vault.put(path, header, agent, to, seconds=seconds, sealed_by=sealed_by)
        self.metrics.handed_over.labels("put").inc(entry.bytes)
        return described(entry)

    def verify(self, entry: Entry) -> dict[str, Any]:
        """Return what is known of a cache: that its file is whole, whether it fits the model, who vouches for it."""
        read_cache(entry.path, header=entry.header)
        found = compare(entry.header.manifest.cache.spec, self.engine.spec)
        return {
            "sound": True,
            "fits": not any(each.severity == "fatal" for each in found),
            "differences": [
                {"field": each.field, "severity": each.severity, "found": each.found, "expected": each.expected}
                for each in found
            ],
            "cache": described(entry).model_dump(),
        }

    def close(self) -> None:
        """End the model's thread and remove what is kept."""
        self.worker.close()
        self.vault.close()

    def _admitted(self, path: Path) -> tuple[Header, str | None]:
        header = peek(path)
        if not self.settings.require_seals and header.seal is None:
            return header, None
        admitted = admit(path, self.senders)
        return admitted.header, admitted.trusted.sender

    def _keep(
        self, turn: Turn, made: Generation, transfer: KVTransfer, agent: str, system: str
    ) -> tuple[KVCache, Entry] | None:
        if transfer.keep is None:
            return None
        cache = whole(self.engine, turn, made, system).labelled(sender=agent)
        path = self.vault.new_path()
        if transfer.keep == "whole":
            write_cache(cache, path)
        else:
            cache = content_columns(cache)
            write_cache(cache, path, WIRE)
        entry = self.vault.put(path, peek(path), agent, transfer.to, seconds=transfer.ttl_seconds)
        return cache, entry

    def _completed(
        self, asked: Asked, made: Generation, wanted: Completion, kept: tuple[KVCache, Entry] | None
    ) -> Completed:
        past = asked.turn.past
        prompt = made.tokens_prefilled + (0 if past is None else past.columns)
        read, written = prompt - asked.skipped, len(made.token_ids)
        for kind, tokens in (("read", read), ("skipped", asked.skipped), ("written", written)):
            self.metrics.tokens.labels(kind).inc(tokens)
        usage = Usage(
            prompt_tokens=prompt,
            completion_tokens=written,
            total_tokens=prompt + written,
            prompt_tokens_details={"cached_tokens": asked.skipped},
        )
        reason = "length" if written >= _limits(wanted).new_tokens else "stop"
        return Completed(made.text, reason, usage, None if kept is None else described(kept[1]))


def described(entry: Entry) -> Kept:
    """Return what a client is told of a cache."""
    info = entry.header.manifest.cache
    return Kept(
        handle=entry.handle,
        columns=max(layer.columns for layer in info.layers),
        bytes=entry.bytes,
        expires_at=entry.expires,
        whole=info.rope == "applied",
        sealed_by=entry.sealed_by,
    )


def _limits(wanted: Completion) -> Limits:
    stop = wanted.stop or ()
    return Limits(
        new_tokens=wanted.max_completion_tokens or wanted.max_tokens or ANSWER_TOKENS,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        temperature=wanted.temperature or 0.0,
        top_p=1.0 if wanted.top_p is None else wanted.top_p,
        seed=wanted.seed or 0,
    )
