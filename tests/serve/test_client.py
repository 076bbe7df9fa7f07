"""The small client, and the same as tools: hand over here, recall there."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from unspoken.client import Client
from unspoken.errors import ServerRefused, StorageError

from .conftest import Running

TOLD, ASKED = "The old mill is run by Anna.", "Who runs the old mill?"


@pytest.fixture
def agents(serve: Running, tmp_path: Path) -> dict[str, Client]:
    """Lyra, Vera and somebody without a token."""
    from unspoken.serve.access import add_token

    path = tmp_path / "tokens.json"
    tokens = {name: add_token(path, name, ["chat", "caches"]) for name in ("lyra", "vera")}
    url = serve(tokens=path).url
    return {name: Client(url, token) for name, token in tokens.items()} | {"nobody": Client(url)}


def test_one_hands_over_and_the_other_goes_on(agents: dict[str, Client]) -> None:
    told = agents["lyra"].complete(TOLD, keep="content", to=["vera"])
    assert told.kept is not None
    answer = agents["vera"].complete(ASKED, handles=[told.kept.handle])
    assert answer.text == "Anna"
    assert answer.kept is None
    assert answer.skipped_tokens >= told.kept.columns
    assert agents["lyra"].verify(told.kept.handle)["fits"]
    agents["lyra"].delete(told.kept.handle)
    with pytest.raises(ServerRefused, match=r"\(404, no_such_cache\).* Hand it over again\."):
        agents["vera"].complete(ASKED, handles=[told.kept.handle])


def test_a_file_goes_up_and_comes_down(agents: dict[str, Client], tmp_path: Path) -> None:
    told = agents["lyra"].complete(TOLD, keep="whole")
    assert told.kept is not None
    path = tmp_path / "kept.kv.safetensors"
    agents["lyra"].get(told.kept.handle, path)
    assert path.stat().st_size == told.kept.bytes
    again = agents["lyra"].put(path, to=["vera"], seconds=60.0)
    assert (again.whole, again.columns) == (True, told.kept.columns)
    assert agents["vera"].complete(ASKED, handles=[again.handle]).text == "Anna"
    with pytest.raises(ServerRefused, match="no_such_cache"):
        agents["vera"].get(told.kept.handle, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    with pytest.raises(StorageError, match="cannot be read"):
        agents["lyra"].put(tmp_path / "missing")
    with pytest.raises(ServerRefused, match="no_sound_cache"):
        agents["lyra"].put(__file__)


def test_what_is_refused_says_so(agents: dict[str, Client]) -> None:
    with pytest.raises(ServerRefused, match=r"\(401, no_token\).* Ask whoever runs the server for a token"):
        agents["nobody"].models()
    for url in ("http://127.0.0.1:9", "no url at all"):
        with pytest.raises(ServerRefused, match=f"server at {url} cannot be reached"):
            Client(url).models()
    assert "unspoken-" not in repr(agents["lyra"])


def test_the_tools_hand_over_and_recall_through_a_real_server(agents: dict[str, Client]) -> None:
    pytest.importorskip("mcp", reason="the extra `mcp` is not installed")
    from mcp import Client as Caller
    from mcp import StdioServerParameters
    from mcp.client.stdio import stdio_client

    async def talk() -> tuple[Any, ...]:
        def tools(name: str) -> Any:
            agent = agents[name]
            environment = {"UNSPOKEN_TOKEN": agent.token or ""}
            arguments = ["-m", "unspoken", "mcp", "--url", agent.url]
            return Caller(stdio_client(StdioServerParameters(command=sys.executable, args=arguments, env=environment)))

        async with tools("lyra") as lyra, tools("vera") as vera:
            names = sorted(tool.name for tool in (await lyra.list_tools()).tools)
            told = _data(await lyra.call_tool("hand_over", {"text": TOLD, "to": ["vera"]}))
            answer = _data(await vera.call_tool("recall", {"question": ASKED, "handles": [told["handle"]]}))
            whole = _data(await lyra.call_tool("verify", {"handle": told["handle"]}))
            await lyra.call_tool("forget", {"handle": told["handle"]})
            gone = await vera.call_tool("recall", {"question": ASKED, "handles": [told["handle"]]})
            return names, answer, whole, gone

    names, answer, whole, gone = asyncio.run(talk())
    assert names == ["forget", "hand_over", "recall", "verify"]
    assert answer["answer"] == "Anna"
    assert answer["tokens_skipped"] >= len(TOLD)
    assert whole["fits"]
    assert gone.is_error
    assert "no_such_cache" in gone.content[0].text


def _data(result: Any) -> dict[str, Any]:
    assert not result.is_error, result
    return result.structured_content or json.loads(result.content[0].text)
