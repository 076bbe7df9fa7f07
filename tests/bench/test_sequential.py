"""Two agents one after the other: one model at a time, and the receiver goes on as the sender would have."""

from __future__ import annotations

from unspoken.bench.sequential import measure, table
from unspoken.engines.fake import FakeEngine
from unspoken.engines.protocol import Engine

STAGES = ["load_sender", "capture", "save", "free_sender", "load_receiver", "inject", "first_token"]


def test_the_sender_is_unloaded_before_the_receiver_is_loaded_and_nothing_of_its_cache_is_lost() -> None:
    loaded: list[int] = []
    most: list[int] = []

    class Loaded(FakeEngine):
        def close(self) -> None:
            loaded.pop()

    def load() -> Engine:
        loaded.append(1)
        most.append(len(loaded))
        return Loaded()

    told: list[str] = []
    found = measure(load, 64, told.append)
    assert most == [1, 1]
    assert loaded == []
    assert found["same_logits"] is True
    assert found["columns"] > found["tokens"] == 64
    assert list(found["seconds"]) == list(found["resident_bytes"]) == STAGES
    assert told == [f"{stage.replace('_', ' ')} ..." for stage in STAGES]
    assert found["peak_rss_bytes"] >= max(found["resident_bytes"].values()) // 2 > 0
    assert table(found | {"planned_bytes": 1 << 30}).row_count == len(STAGES) + 2
