"""The unmodified client of OpenAI talks, streams, and hands over."""

from __future__ import annotations

import openai
import pytest

from unspoken.engines.fake import UNKNOWN

from .conftest import Running, Server

TOLD, ASKED = "The old mill is run by Anna.", "Who runs the old mill?"
MODEL = "fake-0"


def client(server: Server) -> openai.OpenAI:
    """Return a client."""
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)


def test_it_talks(serve: Running) -> None:
    talk = client(serve())
    assert [model.id for model in talk.models.list()] == [MODEL]
    assert talk.models.retrieve(MODEL).id == MODEL
    made = talk.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": TOLD},
            {"role": "assistant", "content": "Noted."},
            {"role": "user", "content": [{"type": "text", "text": ASKED}]},
        ],
    )
    assert made.choices[0].message.content == "Anna"
    assert made.choices[0].finish_reason == "stop"
    assert made.usage is not None
    assert made.usage.completion_tokens == 4
    assert made.usage.total_tokens == made.usage.prompt_tokens + 4


def test_it_streams(serve: Running) -> None:
    talk = client(serve())
    chunks = list(
        talk.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": f"{TOLD}\n\n{ASKED}"}],
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Anna"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 4


def test_it_hands_over(serve: Running) -> None:
    talk = client(serve())
    first = talk.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": TOLD}],
        extra_body={"kv_transfer_params": {"keep": "content"}},
    )
    kept = first.model_extra["kv_transfer_params"]
    assert not kept["whole"]
    assert kept["columns"] == len(TOLD) + len(UNKNOWN)
    asked = [{"role": "system", "content": "You are CC."}, {"role": "user", "content": ASKED}]
    alone = talk.chat.completions.create(model=MODEL, messages=asked)
    given = talk.chat.completions.create(
        model=MODEL, messages=asked, extra_body={"kv_transfer_params": {"handles": [kept["handle"]]}}
    )
    assert [each.choices[0].message.content for each in (alone, given)] == [UNKNOWN, "Anna"]
    assert given.usage.prompt_tokens_details.cached_tokens >= kept["columns"]


def test_a_whole_conversation_is_gone_on_with(serve: Running) -> None:
    talk = client(serve())
    first = talk.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": TOLD}],
        extra_body={"kv_transfer_params": {"keep": "whole"}},
    )
    kept = first.model_extra["kv_transfer_params"]
    assert kept["whole"]
    then = talk.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": ASKED}],
        extra_body={"kv_transfer_params": {"handles": [kept["handle"]]}},
    )
    assert then.choices[0].message.content == "Anna"


def test_a_stop_text_and_a_limit_end_it(serve: Running) -> None:
    talk = client(serve())
    said = [{"role": "user", "content": f"{TOLD}\n\n{ASKED}"}]
    made = talk.chat.completions.create(model=MODEL, messages=said, stop=["nna"])
    assert (made.choices[0].message.content, made.choices[0].finish_reason) == ("A", "stop")
    made = talk.chat.completions.create(model=MODEL, messages=said, max_tokens=2)
    assert (made.choices[0].message.content, made.choices[0].finish_reason) == ("An", "length")


def test_errors_are_those_the_client_knows(serve: Running) -> None:
    talk = client(serve())
    said = [{"role": "user", "content": "Hi"}]
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-5' here"):
        talk.chat.completions.create(model="gpt-5", messages=said)
    with pytest.raises(openai.BadRequestError, match="no tools"):
        talk.chat.completions.create(
            model=MODEL, messages=said, tools=[{"type": "function", "function": {"name": "f"}}]
        )
    with pytest.raises(openai.NotFoundError, match="no such cache for you"):
        talk.chat.completions.create(
            model=MODEL, messages=said, extra_body={"kv_transfer_params": {"handles": ["abc"]}}
        )
    with pytest.raises(openai.BadRequestError, match="the last message has to be the user's"):
        talk.chat.completions.create(model=MODEL, messages=[{"role": "assistant", "content": "Hi"}])
