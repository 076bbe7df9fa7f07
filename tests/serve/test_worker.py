"""The worker ends in good order: what runs is finished, what waits is given up, and nobody is left waiting."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError
from typing import Any

import pytest

from unspoken.engines.fake import FakeEngine
from unspoken.engines.protocol import Engine, Generation, Limits, Turn
from unspoken.serve.worker import Busy, Call, Job, Worker


class Slow(FakeEngine):
    """Answers when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.began, self.may_go_on = threading.Event(), threading.Event()

    def generate(self, turns: Any, limits: Any, hear: Any = None) -> Any:
        self.began.set()
        self.may_go_on.wait(10)
        return super().generate(turns, limits, hear)


def job(tokens: int) -> Job:
    def prepare(engine: Engine) -> Turn:
        return Turn(engine.frame("card").before)

    def finish(engine: Engine, turn: Turn, made: Generation) -> str:
        return made.text

    return Job(prepare, finish, Limits(tokens), time.monotonic() + 60)


def test_what_runs_is_finished_and_what_waits_is_given_up() -> None:
    engine = Slow()
    worker = Worker(engine, waiting=4, together=2)
    running = worker.submit(job(1))
    assert engine.began.wait(10)
    waiting = [worker.submit(job(2 + at)) for at in range(4)]  # Unlike one another: never in one batch.
    closing = threading.Thread(target=worker.close)
    closing.start()
    time.sleep(0.05)
    engine.may_go_on.set()
    closing.join(10)
    assert not closing.is_alive()
    assert isinstance(running.result(0), str)
    for each in waiting:
        with pytest.raises(CancelledError):
            each.result(0)
    with pytest.raises(Busy):
        worker.submit(job(1))


def test_what_was_taken_from_the_queue_for_a_batch_is_given_up_too() -> None:
    engine = Slow()
    worker = Worker(engine, waiting=8, together=2)
    hold = threading.Event()
    first = worker.submit(Call(lambda: hold.wait(10), time.monotonic() + 60))
    # When the first is done, the second runs, and those behind it have been looked at for its batch.
    later = [worker.submit(job(1 + at)) for at in range(4)]
    hold.set()
    assert first.result(10)
    assert engine.began.wait(10)
    closing = threading.Thread(target=worker.close)
    closing.start()
    time.sleep(0.05)
    engine.may_go_on.set()
    closing.join(10)
    assert not closing.is_alive()
    assert later[0].done()
    assert not later[0].cancelled()
    assert all(each.cancelled() for each in later[1:])


def test_a_worker_without_work_ends_at_once() -> None:
    worker = Worker(FakeEngine(), waiting=1, together=1)
    worker.close()
    assert worker.waiting == 0
