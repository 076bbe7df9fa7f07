"""One model, one thread, one queue: whatever asks the model something waits its turn here, or is told to come later."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

from unspoken.engines.protocol import Engine, Generation, Limits, Turn


class Busy(Exception):
    """The queue is full."""


class Expired(Exception):
    """A job has waited or worked longer than it may, or nobody waits for it any more."""


@dataclass
class Job:
    """One answer that is wanted.

    Attributes:
        prepare: Returns what is to be answered; called in the worker's thread, on the model.
        finish: Makes of the answer what is wanted; called there, too.
        limits: When the answer ends. Jobs of the same limits are answered together.
        deadline: Seconds of the monotonic clock at which nobody waits any longer.
        hear: Is told the answer piece by piece, from the worker's thread.
        result: What `finish` returns, or why there is none.
    """

    prepare: Callable[[Engine], Turn]
    finish: Callable[[Engine, Turn, Generation], Any]
    limits: Limits
    deadline: float
    hear: Callable[[str], None] | None = None
    result: Future[Any] = field(default_factory=Future)

    def is_over(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.result.cancelled() or time.monotonic() > self.deadline


@dataclass
class Call:
    """Something else that is done with the model, by itself.

    Attributes:
        work: What is done; called in the worker's thread.
        deadline: Seconds of the monotonic clock after which it is not begun.
        result: What it returns, or why there is nothing.
    """

    work: Callable[[], Any]
    deadline: float
    result: Future[Any] = field(default_factory=Future)

    def is_over(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.result.cancelled() or time.monotonic() > self.deadline


class Worker:
    """Runs jobs on a model, several at once where they are alike.

    Args:
        engine: The model; used by the worker's thread alone.
        waiting: Most jobs that wait.
        together: Most jobs that are answered in one batch.
    """

    def __init__(self, engine: Engine, *, waiting: int, together: int) -> None:
        self.engine = engine
        self._jobs: queue.Queue[Job | Call | None] = queue.Queue(waiting)
        self._together = together
        self._left_over: list[Job | Call] = []
        self._running, self._closed = 0, False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return self._jobs.qsize() + len(self._left_over)

    @property
    def running(self) -> int:
        """How many jobs are being answered."""
        return self._running

    def submit(self, job: Job | Call) -> Future[Any]:
        """Take a job, and return what it will come to.

        Raises:
            Busy: If too many wait, or the worker has ended.
        """
        if self._closed:
            raise Busy
        try:
            self._jobs.put_nowait(job)
        except queue.Full as error:
            raise Busy from error
        return job.result

    def close(self) -> None:
        """Let the job that runs end, give up those that wait, and end."""
        self._closed = True
        with suppress(queue.Full):  # Wakes it, should it wait for a job; if there are some it is awake.
            self._jobs.put_nowait(None)
        self._thread.join()

    def _run(self) -> None:
        while not self._closed:
            first = self._left_over.pop(0) if self._left_over else self._jobs.get()
            if first is None:
                break
            if isinstance(first, Call):
                self._running = 1
                self._settle(first, partial(_raise, Expired()) if first.is_over() else first.work)
            else:
                batch = self._batch(first)
                self._running = len(batch)
                self._answer(batch)
            self._running = 0
        self._give_up()

    def _give_up(self) -> None:
        """Cancel all that wait."""
        waiting = self._left_over
        while not self._jobs.empty():
            waiting += [job for job in (self._jobs.get_nowait(),) if job is not None]
        for job in waiting:
            job.result.cancel()

    def _batch(self, first: Job) -> list[Job]:
        """Return a job with those behind it that can be answered with it; the order of the others stays."""
        batch, others = [first], list[Job | Call]()

        def sort(job: Job | Call) -> None:
            fits = isinstance(job, Job) and job.limits == first.limits and len(batch) < self._together
            (batch if fits else others).append(job)  # type: ignore[arg-type]

        for job in self._left_over:
            sort(job)
        while len(batch) < self._together:
            try:
                arrived = self._jobs.get_nowait()
            except queue.Empty:
                break
            if arrived is None:  # The worker is to end; what it has begun it finishes.
                break
            sort(arrived)
            if len(others) >= self._together:
                break
        self._left_over = others
        return batch

    def _answer(self, batch: Sequence[Job]) -> None:
        ready = [(job, turn) for job in batch if (turn := self._prepared(job)) is not None]
        if not ready:
            return
        jobs, turns = zip(*ready, strict=True)

        def hear(at: int, piece: str) -> None:
            if all(job.is_over() for job in jobs):
                raise Expired
            if jobs[at].hear is not None and not jobs[at].is_over():
                jobs[at].hear(piece)

        try:
            made = self.engine.generate(turns, jobs[0].limits, hear)
        except Exception as error:
            self._failed(ready, error)
            return
        for job, turn, generation in zip(jobs, turns, made, strict=True):
            self._settle(job, partial(job.finish, self.engine, turn, generation))

    def _failed(self, ready: Sequence[tuple[Job, Turn]], error: Exception) -> None:
        """Tell a job why it failed; jobs that failed together are tried one by one, as one of them may be to blame."""
        if len(ready) == 1 or isinstance(error, Expired):
            for job, _ in ready:
                self._settle(job, lambda: _raise(error))
            return
        for job, _ in ready:
            self._answer([job])

    def _prepared(self, job: Job) -> Turn | None:
        if job.is_over():
            self._settle(job, lambda: _raise(Expired()))
            return None
        try:
            return job.prepare(self.engine)
        except Exception as error:
            problem = error
            self._settle(job, lambda: _raise(problem))
            return None

    def _settle(self, job: Job | Call, work: Callable[[], Any]) -> None:
        if not job.result.set_running_or_notify_cancel():
            return
        try:
            made = work()
        except Exception as error:
            job.result.set_exception(error)
        else:
            job.result.set_result(made)


def _raise(error: Exception) -> NoReturn:
    raise error
