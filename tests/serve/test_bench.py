"""A server under load is judged by what comes back: right, somebody else's, refused, and how much memory it takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from unspoken.bench.serving import STAGES, measure, table
from unspoken.engines.fake import FakeEngine
from unspoken.engines.protocol import Generation
from unspoken.errors import ServerRefused
from unspoken.serve.access import add_token

from .conftest import Running


class Told(FakeEngine):
    """Answers with a code out of what it was asked: its own, or that of whoever came before."""

    def __init__(self, late: int) -> None:
        super().__init__()
        self.late, self.codes = late, list[str]()

    def generate(self, turns: Any, limits: Any, hear: Any = None) -> tuple[Generation, ...]:
        """Answer."""
        made = []
        for turn, each in zip(turns, super().generate(turns, limits), strict=True):
            words = self.decode(turn.prompt.token_ids)
            self.codes.append(words.partition("The code of the vault is ")[2][:4])
            made.append(replace(each, text=self.codes[max(0, len(self.codes) - 1 - self.late)]))
        return tuple(made)


def test_right_answers_are_counted_and_nothing_is_kept(serve: Running) -> None:
    server = serve(Told(0), waiting=64)
    found = measure(server.url, None, 20, 30, lambda _: None)
    assert found["at_once"]["outcomes"] == {"right": 20}
    assert len(found["rows"]) == STAGES
    assert found["rows"][-1]["outcomes"] == {"right": 30}
    assert found["rows"][-1]["requests"] == 30
    assert found["rows"][-1]["server_memory_bytes"] > 10_000_000
    assert table(found).row_count == STAGES + 1
    assert server.service.vault.held() == (0, 0)


def test_answers_with_somebody_elses_code_are_told(serve: Running) -> None:
    found = measure(serve(Told(1), waiting=64).url, None, 20, 30, lambda _: None)
    assert found["rows"][-1]["outcomes"]["mixed up"] == 29  # The first after those at once has one of theirs: wrong.
    assert found["at_once"]["outcomes"]["mixed up"] >= 18


def test_refusals_are_told_apart_from_losses(serve: Running) -> None:
    found = measure(serve(Told(0), waiting=1, together=1).url, None, 20, 10, lambda _: None)
    assert sum(found["at_once"]["outcomes"].values()) == 20
    assert set(found["at_once"]["outcomes"]) == {"right", "refused"}


def test_where_nobody_answers_it_is_told(serve: Running, tmp_path: Any) -> None:
    with pytest.raises(ServerRefused, match="No server of this kind answers"):
        measure("http://127.0.0.1:1", None, 1, 1, lambda _: None)
    with pytest.raises(ServerRefused, match="No server of this kind answers"):
        measure("nonsense", None, 1, 1, lambda _: None)
    token = add_token(tmp_path / "tokens", "lyra", ["chat"])
    url = serve(tokens=tmp_path / "tokens").url
    with pytest.raises(ServerRefused, match=r"The server refuses \(401\)"):
        measure(url, None, 1, 1, lambda _: None)
    with pytest.raises(ServerRefused, match=r"The server refuses \(403\)"):
        measure(url, token, 1, 10, lambda _: None)
