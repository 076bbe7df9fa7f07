"""Caches go up and down, for those who may have them, as long as they may, and nothing else gets in."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from unspoken.channels.kv import content_columns
from unspoken.engines.fake import UNKNOWN, FakeEngine
from unspoken.session import Agent

from .conftest import Running, Server

TOLD, ASKED = "The old mill is run by Anna.", "Who runs the old mill?"
MODEL = "fake-0"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A cache file of the served model."""
    from unspoken.cachefile import write_cache

    path = tmp_path / "told.kv.safetensors"
    write_cache(content_columns(Agent("lyra", FakeEngine()).read(TOLD).cache), path, "bfloat16")
    return path


@pytest.fixture
def tokens(tmp_path: Path) -> dict[str, str]:
    """Tokens of agents, in a file `tokens.json`."""
    from unspoken.serve.access import add_token

    path = tmp_path / "tokens.json"
    rights = {"lyra": ("chat", "caches"), "vera": ("chat", "caches"), "cc": ("chat",), "watch": ("metrics",)}
    return {name: add_token(path, name, allowed) for name, allowed in rights.items()}


def as_agent(server: Server, token: str = "") -> httpx.Client:
    """Return a client with a token."""
    return httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {token}"} if token else {}, timeout=30)


def refusal(response: httpx.Response, status: int, code: str) -> str:
    """See a refusal of this kind, and return what it says."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["code"] == code
    assert error["message"].endswith((".", "?"))
    return str(error["message"])


def ask(client: httpx.Client, question: str = ASKED, **transfer: Any) -> httpx.Response:
    """Ask something."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": question}], "kv_transfer_params": transfer}
    return client.post("/v1/chat/completions", json=body)


def said(response: httpx.Response) -> str:
    """Return an answer."""
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def test_a_file_goes_up_is_asked_about_comes_down_and_goes(serve: Running, file: Path) -> None:
    client = as_agent(serve())
    put = client.post("/v1/caches", content=file.read_bytes())
    assert put.status_code == 201
    kept = put.json()
    assert (kept["columns"], kept["bytes"], kept["whole"]) == (len(TOLD), file.stat().st_size, False)
    assert said(ask(client, handles=[kept["handle"]])) == "Anna"
    path = f"/v1/caches/{kept['handle']}"
    assert client.get(path).content == file.read_bytes()
    told = client.post(f"{path}/verify").json()
    assert (told["sound"], told["fits"], told["differences"]) == (True, True, [])
    assert client.delete(path).status_code == 204
    for gone in (
        client.get(path),
        client.delete(path),
        client.post(f"{path}/verify"),
        ask(client, handles=[kept["handle"]]),
    ):
        refusal(gone, 404, "no_such_cache")


def test_an_agent_has_what_it_may_have_and_nothing_else(
    serve: Running, file: Path, tokens: dict[str, str], tmp_path: Path
) -> None:
    server = serve(tokens=tmp_path / "tokens.json")
    lyra, vera, cc, watch, nobody = (as_agent(server, tokens.get(name, "")) for name in (*tokens, "nobody"))
    handle = lyra.post("/v1/caches", content=file.read_bytes(), params={"to": ["cc"]}).json()["handle"]
    assert said(ask(lyra, handles=[handle])) == "Anna"
    assert said(ask(cc, handles=[handle])) == "Anna"
    refusal(ask(vera, handles=[handle]), 404, "no_such_cache")
    refusal(vera.get(f"/v1/caches/{handle}"), 404, "no_such_cache")
    refusal(vera.delete(f"/v1/caches/{handle}"), 404, "no_such_cache")
    refusal(cc.get(f"/v1/caches/{handle}"), 403, "no_right")
    refusal(watch.get("/v1/models"), 403, "no_right")
    assert b"unspoken_caches 1.0" in watch.get("/metrics").content
    for client in (nobody, as_agent(server, "wrong"), as_agent(server, tokens["lyra"] + "x")):
        for response in (
            client.get("/v1/models"),
            ask(client),
            client.post("/v1/caches", content=b""),
            client.get("/metrics"),
        ):
            refusal(response, 401, "no_token")
    assert nobody.get("/health").json() == {"status": "ok"}
    # What is handed on by name, from agent to agent.
    kept = ask(lyra, TOLD, keep="content", to=["vera"]).json()["kv_transfer_params"]
    assert said(ask(vera, handles=[kept["handle"]])) == "Anna"
    refusal(ask(cc, handles=[kept["handle"]]), 404, "no_such_cache")


def test_what_was_read_for_one_agent_makes_nothing_faster_for_another(
    serve: Running, tokens: dict[str, str], tmp_path: Path
) -> None:
    server = serve(tokens=tmp_path / "tokens.json")
    messages = [{"role": role, "content": "Words."} for role in ("user", "assistant", "user")]
    skipped = [
        as_agent(server, tokens[name])
        .post("/v1/chat/completions", json={"model": MODEL, "messages": messages})
        .json()["usage"]["prompt_tokens_details"]["cached_tokens"]
        for name in ("lyra", "lyra", "vera")
    ]
    assert skipped[1] > 0
    assert [skipped[0], skipped[2]] == [0, 0]


def test_a_cache_is_gone_when_its_time_is_over(serve: Running, file: Path) -> None:
    from unspoken.serve import vault

    client = as_agent(serve(kept=vault.Limits(seconds=0.6)))
    handle = client.post("/v1/caches", content=file.read_bytes(), params={"ttl_seconds": 1000}).json()["handle"]
    assert said(ask(client, handles=[handle])) == "Anna"
    time.sleep(0.7)
    refusal(ask(client, handles=[handle]), 404, "no_such_cache")
    refusal(client.get(f"/v1/caches/{handle}"), 404, "no_such_cache")


def test_no_more_is_kept_than_may_be(serve: Running, file: Path) -> None:
    from unspoken.serve import vault

    size = file.stat().st_size
    client = as_agent(serve(kept=vault.Limits(caches=2)))
    data = file.read_bytes()
    assert [client.post("/v1/caches", content=data).status_code for _ in range(2)] == [201, 201]
    refusal(client.post("/v1/caches", content=data), 429, "insufficient_quota")
    refusal(ask(client, TOLD, keep="whole"), 429, "insufficient_quota")
    server = serve(kept=vault.Limits(bytes=size + 10))
    client = as_agent(server)
    assert client.post("/v1/caches", content=data).status_code == 201
    refusal(client.post("/v1/caches", content=data), 413, "too_large")
    refusal(ask(client, TOLD, keep="whole"), 429, "insufficient_quota")
    assert len(list(server.service.vault.folder.iterdir())) == 1


def test_what_is_too_large_is_refused_and_leaves_nothing(serve: Running, file: Path) -> None:
    server = serve(upload_bytes=1000, body_bytes=2000)
    client = as_agent(server)
    refusal(client.post("/v1/caches", content=file.read_bytes()), 413, "too_large")
    refusal(client.post("/v1/caches", content=iter([b"x" * 400] * 5)), 413, "too_large")
    refusal(ask(client, "x" * 3000), 413, "too_large")
    assert list(server.service.vault.folder.iterdir()) == []


@pytest.mark.parametrize("damage", ["empty", "junk", "cut", "flipped", "foreign"])
def test_what_is_no_sound_cache_of_this_model_is_refused_and_leaves_nothing(
    serve: Running, file: Path, tmp_path: Path, damage: str
) -> None:
    from unspoken.cachefile import write_cache

    server, data = serve(), file.read_bytes()
    if damage == "foreign":
        foreign = tmp_path / "foreign.kv.safetensors"
        write_cache(content_columns(Agent("lyra", FakeEngine(seed=1)).read(TOLD).cache), foreign)
        message = refusal(as_agent(server).post("/v1/caches", content=foreign.read_bytes()), 409, "incompatible_cache")
        assert "does not fit 'fake-0'" in message
    else:
        made = {"empty": b"", "junk": b"junk" * 100, "cut": data[:-7], "flipped": data[:-7] + b"\xff" + data[-6:]}[
            damage
        ]
        message = refusal(as_agent(server).post("/v1/caches", content=made), 422, "no_sound_cache")
    assert str(tmp_path) not in message
    assert list(server.service.vault.folder.iterdir()) == []


def test_where_seals_are_required_only_known_senders_get_in(serve: Running, file: Path, tmp_path: Path) -> None:
    from unspoken.trust.keys import create_key, load_key
    from unspoken.trust.seals import seal_file

    public, sealed = create_key("lyra", tmp_path / "own"), tmp_path / "sealed.kv.safetensors"
    seal_file(file, load_key("lyra", tmp_path / "own"), sender="lyra", seconds_to_live=60, out=sealed)
    strict, open_ = as_agent(serve(require_seals=True)), as_agent(serve())
    for client, data in ((strict, file), (strict, sealed), (open_, sealed)):
        refusal(client.post("/v1/caches", content=data.read_bytes()), 403, "seal_refused")
    server = serve(require_seals=True)
    server.service.senders.add("lyra", public.key)
    kept = as_agent(server).post("/v1/caches", content=sealed.read_bytes()).json()
    assert kept["sealed_by"] == "lyra"


@pytest.mark.parametrize("name", ["../../etc/passwd", "..%2f..%2fetc%2fpasswd", "a/b", "x" * 65, "%00", "tokens.json"])
def test_a_name_that_is_no_handle_leads_nowhere(serve: Running, name: str) -> None:
    response = as_agent(serve()).get(f"/v1/caches/{name}")
    assert response.status_code in (400, 404)
    assert "error" in response.json()


USER = b'"messages": [{"role": "user", "content": "x"}]'


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        (b'{"model": "fake-0"}', "messages"),
        (b'{"model": "fake-0", "messages": []}', "messages"),
        (b'{"model": "fake-0", "messages": [{"role": "tool", "content": "x"}]}', "messages.0.role"),
        (b'{"model": "fake-0", "messages": [{"role": "user", "content": 7}]}', "messages.0.content.str"),
        (b'{"model": "fake-0", "n": 2, ' + USER + b"}", "n"),
        (b'{"model": "fake-0", "temperature": -1, ' + USER + b"}", "temperature"),
        (b'{"model": "fake-0", "stop": [""], ' + USER + b"}", "stop"),
        (b'{"model": "fake-0", "messages": [{"role": "user", "content": "\\ud800"}]}', None),
        (b'{"model": "fake-0", "messages": [{"role": "user", "content": " "}]}', None),
        (b'{"model": "fake-0", "kv_transfer_params": {"handels": []}, ' + USER + b"}", "kv_transfer_params.handels"),
        (
            b'{"model": "fake-0", "kv_transfer_params": {"handles": ["../x"]}, ' + USER + b"}",
            "kv_transfer_params.handles.0",
        ),
    ],
)
def test_a_request_that_is_none_is_refused(serve: Running, body: bytes, param: str | None) -> None:
    response = as_agent(serve()).post(
        "/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}
    )
    refusal(response, 400, "invalid_request")
    if param is not None:
        assert response.json()["error"]["param"].startswith(param)


def test_a_conversation_that_does_not_fit_is_refused(serve: Running) -> None:
    client = as_agent(serve(FakeEngine(context=120)))
    refusal(ask(client, "x" * 200), 400, "context_length_exceeded")


def test_a_whole_conversation_comes_alone(serve: Running) -> None:
    client = as_agent(serve())
    handle = ask(client, TOLD, keep="whole").json()["kv_transfer_params"]["handle"]
    other = ask(client, TOLD, keep="content").json()["kv_transfer_params"]["handle"]
    assert said(ask(client, handles=[handle])) == "Anna"
    refusal(ask(client, handles=[handle, other]), 400, "invalid_request")


def test_nothing_that_was_said_is_logged(serve: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "unspoken.serve")
    client = as_agent(serve())
    handle = ask(client, TOLD, keep="content").json()["kv_transfer_params"]["handle"]
    client.get(f"/v1/caches/{handle}")
    ends = time.monotonic() + 5
    while sum(record.name == "unspoken.serve" for record in caplog.records) < 2 and time.monotonic() < ends:
        time.sleep(0.01)  # A line is written when the answer has been sent.
    lines = [json.loads(record.message) for record in caplog.records if record.name == "unspoken.serve"]
    assert [(line["route"], line["status"]) for line in lines] == [
        ("/v1/chat/completions", 200), ("/v1/caches/{handle}", 200),
    ]  # fmt: skip
    assert all(word not in caplog.text for word in (TOLD, UNKNOWN, handle))
    text = client.get("/metrics").text
    assert 'unspoken_requests_total{route="/v1/chat/completions",status="200"} 1.0' in text
    assert handle not in text
