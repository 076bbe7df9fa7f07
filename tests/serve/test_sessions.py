"""Sessions over HTTP: held, watched, looked into, and nobody else's."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from unspoken.engines.fake import FakeEngine

from .conftest import Running, Server

TOLD, ASKED = "The old mill is run by Anna.", "Who runs the old mill?"
AGENTS = [{"name": name} for name in ("lyra", "vera", "cc")]


def begun(server: Server, **options: Any) -> tuple[httpx.Client, str]:
    """Begin a session."""
    client = httpx.Client(base_url=server.url, timeout=30)
    response = client.post("/v1/sessions", json={"agents": AGENTS} | options)
    assert response.status_code == 201, response.text
    return client, f"/v1/sessions/{response.json()['id']}"


def seen(client: httpx.Client, path: str, until: int) -> list[dict[str, Any]]:
    """Watch a session until there are so many events."""
    found: list[dict[str, Any]] = []
    with client.stream("GET", f"{path}/events") as response:
        for line in response.iter_lines():
            if line.startswith("data: "):
                found.append(json.loads(line[6:]))
            if len(found) == until:
                return found
    return found


def test_a_session_is_held_and_watched(serve: Running) -> None:
    client, path = begun(serve(), beside="full-text")
    first = client.post(f"{path}/say", json={"to": "lyra", "words": TOLD}).json()["events"]
    assert [event["event"] for event in first] == ["said", "replied"] * 2
    second = client.post(f"{path}/say", json={"to": "cc", "words": ASKED}).json()["events"]
    assert [event["channel"] for event in second if event["event"] == "handed over"] == ["kv", "full-text"]
    assert [event["passage"]["text"] for event in second if event["event"] == "replied"] == ["Anna", "Anna"]
    watched = seen(client, path, 16)
    assert [event["number"] for event in watched] == list(range(16))
    main = [event["event"] for event in watched if event["side"] == "main"]
    assert main == ["said", "piece", "replied", "settled", "said", "handed over", "piece", "replied", "settled"]
    state = client.get(path).json()
    assert (state["channel"], state["beside"], state["seen"]) == ("kv", "full-text", 18)
    assert [mind["passages"] for mind in state["minds"]] == [2, 0, 4]
    assert client.get("/v1/sessions").json()["sessions"] == [state]
    assert client.delete(path).status_code == 204
    assert client.get(path).status_code == 404


def test_who_watches_sees_it_happen(serve: Running) -> None:
    client, path = begun(serve())
    found: list[dict[str, Any]] = []
    other = httpx.Client(base_url=client.base_url, timeout=30)
    watching = threading.Thread(target=lambda: found.extend(seen(other, path, 4)))
    watching.start()
    client.post(f"{path}/say", json={"to": "lyra", "words": TOLD})
    watching.join(timeout=10)
    assert [event["event"] for event in found] == ["said", "piece", "replied", "settled"]


def test_who_watches_a_session_that_is_ended_is_let_go(serve: Running) -> None:
    client, path = begun(serve())
    other = httpx.Client(base_url=client.base_url, timeout=30)
    watching = threading.Thread(target=lambda: seen(other, path, 1000))
    watching.start()
    client.post(f"{path}/say", json={"to": "lyra", "words": TOLD})
    client.delete(path)
    watching.join(timeout=8)
    assert not watching.is_alive()


def test_all_are_spoken_to_in_turn(serve: Running) -> None:
    client, path = begun(serve(), topology="relay")
    events = client.post(f"{path}/say", json={"to": "all", "words": TOLD}).json()["events"]
    assert [event["passage"]["hearer"] for event in events if event["event"] == "said"] == ["lyra", "vera", "cc"]


def test_a_mind_is_shown(serve: Running) -> None:
    client, path = begun(serve())
    client.post(f"{path}/say", json={"to": "lyra", "words": TOLD})
    told = client.get(f"{path}/minds/lyra").json()
    assert len(told["rows"]) == 2
    assert all(len(row) == told["columns"] and max(row) == 1.0 for row in told["rows"])
    assert [span["speaker"] for span in told["spans"]] == ["user", "lyra"]
    assert client.get(f"{path}/minds/bob").status_code == 400


def test_what_cannot_be_held_is_refused(serve: Running) -> None:
    server = serve(FakeEngine(context=200))
    client, path = begun(server)
    for wanted, status in (
        ({"agents": AGENTS[:1]}, 400),
        ({"agents": [AGENTS[0], AGENTS[0]]}, 400),
        ({"agents": AGENTS, "channel": "telepathy"}, 400),
        ({"agents": AGENTS, "topology": "critic"}, 400),
        ({"agents": AGENTS, "colour": "red"}, 400),
    ):
        assert client.post("/v1/sessions", json=wanted).status_code == status
    for said in ({"to": "bob", "words": "Hi"}, {"to": "lyra", "words": ""}, {"to": "lyra", "words": "x" * 300}):
        assert client.post(f"{path}/say", json=said).status_code == 400
    assert [event["event"] for event in seen(client, path, 2)] == ["said", "failed"]
    assert client.get(path).json()["minds"][0]["passages"] == 0
    assert client.get("/v1/sessions/none").status_code == 404


def test_a_session_is_its_owners(serve: Running, tmp_path: Path) -> None:
    from unspoken.serve.access import add_token

    path = tmp_path / "tokens.json"
    lyra, vera = ({"Authorization": f"Bearer {add_token(path, name, ['chat'])}"} for name in ("lyra", "vera"))
    client = httpx.Client(base_url=serve(tokens=path).url, timeout=30)
    name = client.post("/v1/sessions", json={"agents": AGENTS}, headers=lyra).json()["id"]
    assert client.get(f"/v1/sessions/{name}", headers=lyra).status_code == 200
    for method, rest in (("GET", ""), ("GET", "/events"), ("GET", "/minds/lyra"), ("DELETE", "")):
        assert client.request(method, f"/v1/sessions/{name}{rest}", headers=vera).status_code == 404
        assert client.request(method, f"/v1/sessions/{name}{rest}").status_code == 401


def test_there_is_an_end_to_how_many_there_are(serve: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unspoken.serve.talks.MOST_TALKS", 1)
    client, _ = begun(serve())
    response = client.post("/v1/sessions", json={"agents": AGENTS})
    assert (response.status_code, response.json()["error"]["code"]) == (429, "busy")


@pytest.mark.parametrize(
    ("path", "kind"), [("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")]
)
def test_the_page_is_plain_files_that_ask_nobody_else(serve: Running, path: str, kind: str) -> None:
    response = httpx.get(f"{serve().url}{path}")
    assert response.headers["content-type"].startswith(kind)
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert "http" not in response.text.replace("http://www.w3.org/2000/svg", "")
