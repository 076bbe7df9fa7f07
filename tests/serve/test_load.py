"""Many at once: everybody gets its own answer or is told to come again, and nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from typing import Any

import httpx
import pytest

from unspoken.engines.fake import FakeEngine
from unspoken.engines.protocol import Generation, Limits, Turn

from .conftest import Running

MODEL = "fake-0"


class Slow(FakeEngine):
    """A fake model that takes its time, and tells what it was asked together."""

    def __init__(self, seconds: float = 0.02) -> None:
        super().__init__()
        self.seconds, self.batches = seconds, list[int]()
        self.go_on = threading.Event()
        self.go_on.set()

    def generate(self, turns: Any, limits: Limits, hear: Any = None) -> tuple[Generation, ...]:
        """Answer, after a while."""
        self.batches.append(len(turns))
        self.go_on.wait(10)
        time.sleep(self.seconds)
        return super().generate(turns, limits, hear)


def body(number: int, **others: Any) -> dict[str, Any]:
    """A question that only one answer is right for."""
    words = f"The mill of {number} is run by A{number}.\n\nWho runs the mill of {number}?"
    return {"model": MODEL, "messages": [{"role": "user", "content": words}]} | others


async def all_at_once(url: str, bodies: list[dict[str, Any]]) -> list[httpx.Response]:
    """Send requests together."""
    limits = httpx.Limits(max_connections=len(bodies))
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        return await asyncio.gather(*(client.post("/v1/chat/completions", json=each) for each in bodies))


def text(response: httpx.Response) -> str:
    """Return an answer, streamed or not."""
    if response.headers["content-type"].startswith("text/event-stream"):
        import json

        events = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
        return "".join(event["choices"][0]["delta"].get("content", "") for event in events)
    return str(response.json()["choices"][0]["message"]["content"])


@pytest.mark.parametrize("waiting", [8, 64])
def test_fifty_at_once_are_each_answered_right_or_told_to_come_again(serve: Running, waiting: int) -> None:
    engine = Slow()
    server = serve(engine, waiting=waiting)
    bodies = [body(at, stream=bool(at % 2), seed=at % 3) for at in range(50)]
    answers = asyncio.run(all_at_once(server.url, bodies))
    right = 0
    for at, response in enumerate(answers):
        if response.status_code == 429:
            assert response.headers["retry-after"] == "1"
            continue
        assert response.status_code == 200
        assert text(response) == f"A{at}"
        right += 1
    assert right == 50 if waiting == 64 else right >= 8
    assert max(engine.batches) > 1
    assert server.service.worker.waiting == 0


def test_a_request_nobody_waits_for_is_given_up(serve: Running) -> None:
    engine = Slow()
    server = serve(engine)
    engine.go_on.clear()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/chat/completions", json=body(1), timeout=0.5)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/chat/completions", json=body(2), timeout=0.5)
    time.sleep(1.2)  # The server looks now and then.
    engine.go_on.set()
    assert text(httpx.post(f"{server.url}/v1/chat/completions", json=body(3))) == "A3"
    # The second was not even begun.
    assert engine.batches == [1, 1]


def test_an_answer_that_takes_too_long_is_told(serve: Running) -> None:
    engine = Slow()
    server = serve(engine, request_seconds=0.5)
    engine.go_on.clear()
    response = httpx.post(f"{server.url}/v1/chat/completions", json=body(1), timeout=10)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "timeout")
    streamed = httpx.post(f"{server.url}/v1/chat/completions", json=body(1, stream=True), timeout=10)
    assert '"code": "timeout"' in streamed.text
    engine.go_on.set()


def test_one_that_fails_takes_nobody_along(serve: Running, caplog: pytest.LogCaptureFixture) -> None:
    class Picky(Slow):
        def generate(self, turns: Any, limits: Limits, hear: Any = None) -> tuple[Generation, ...]:
            if any("poison" in self.decode(turn.prompt.token_ids) for turn in turns):
                raise ValueError("poison")
            return super().generate(turns, limits, hear)

    server = serve(Picky())
    bodies = [body(at) for at in range(6)]
    bodies[3]["messages"][0]["content"] = "poison"
    caplog.set_level("INFO")
    answers = asyncio.run(all_at_once(server.url, bodies))
    assert [response.status_code for response in answers] == [200, 200, 200, 500, 200, 200]
    # It is told where it failed, and not what was said.
    assert '"error": "ValueError", "where": "test_load.py:' in caplog.text
    assert "poison" not in caplog.text
    assert answers[3].json()["error"]["message"] == "Something went wrong within the server."
    assert [text(answers[at]) for at in (0, 1, 2, 4, 5)] == ["A0", "A1", "A2", "A4", "A5"]


def test_memory_stays_as_it_is_over_a_thousand_requests(serve: Running) -> None:
    server = serve(Slow(0.0), waiting=1000, memory_bytes=1 << 20)
    counts = []
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for start in range(0, 1000, 250):
            for at in range(start, start + 250):
                transfer = {"keep": "content"} if at % 10 == 0 else {}
                made = client.post("/v1/chat/completions", json=body(at, kv_transfer_params=transfer)).json()
                if transfer:
                    client.delete(f"/v1/caches/{made['kv_transfer_params']['handle']}")
            gc.collect()
            counts.append(len(gc.get_objects()))
    assert counts[-1] < 1.05 * counts[1]
    assert server.service.vault.held() == (0, 0)
    assert list(server.service.vault.folder.iterdir()) == []


def test_jobs_of_one_kind_are_answered_together_and_in_turn() -> None:
    from unspoken.serve.worker import Busy, Job, Worker

    engine = Slow()
    engine.go_on.clear()
    worker = Worker(engine, waiting=6, together=3)
    frame = engine.frame("Be brief.")
    order: list[int] = []

    def job(number: int, seed: int) -> Job:
        def finish(_: Any, __: Turn, made: Generation) -> str:
            order.append(number)
            return made.text

        return Job(lambda _: Turn(frame.before + frame.after), finish, Limits(8, seed=seed), time.monotonic() + 60)

    first = worker.submit(job(0, 0))
    while worker.running == 0:
        time.sleep(0.01)
    others = [worker.submit(job(at, at % 2)) for at in range(1, 7)]
    with pytest.raises(Busy):
        worker.submit(job(9, 0))
    engine.go_on.set()
    for future in (first, *others):
        future.result(timeout=10)
    worker.close()
    assert engine.batches == [1, 3, 3]
    assert order == [0, 1, 3, 5, 2, 4, 6]
