"""A chat template is cut where the user's words stand, whatever the template is like."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from unspoken.engines import chat
from unspoken.engines.protocol import Frame, Prompt
from unspoken.engines.transformers import TransformersEngine

NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>model\n"
)
SILENT = NO_SYSTEM.replace("{{ raise_exception('no system role') }}", "").replace(
    "{% for m in messages %}", "{% for m in messages if m.role == 'user' %}"
)
TRIMMING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}<|im_start|>A\n"
)
BROKEN = "{{ messages.nothing.here }}"


def _codes(text: str) -> tuple[int, ...]:
    return tuple(map(ord, text))


def _text(prompt: Prompt) -> str:
    return "".join(map(chr, prompt.token_ids))


def _frame(tokenizer: Any, system: str = "Be brief.") -> Frame:
    return chat.cut(chat.rendered(tokenizer), chat.rendered_between(tokenizer), system, _codes)


def _kinds(frame: Frame) -> list[str]:
    return [span.kind for span in frame.before.spans()]


def test_frame_is_the_rendered_template_without_the_users_words(tiny_tokenizer: Callable[..., Any]) -> None:
    tokenizer = tiny_tokenizer()
    frame = _frame(tokenizer)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert _text(frame.before) + "Who?" + _text(frame.after) == expected
    assert _kinds(frame) == ["sink", "template", "system", "template"]
    assert [span.kind for span in frame.after.spans()] == ["template"]


def test_the_sink_is_one_column_and_the_system_prompt_stands_alone(tiny_tokenizer: Callable[..., Any]) -> None:
    frame = _frame(tiny_tokenizer())
    sink, system = (next(span for span in frame.before.spans() if span.kind == kind) for kind in ("sink", "system"))
    assert (sink.start, sink.stop) == (0, 1)
    assert _text(frame.before)[system.start : system.stop] == "Be brief."


@pytest.mark.parametrize("template", [NO_SYSTEM, SILENT])
def test_without_a_system_role_the_system_prompt_heads_the_users_words(
    tiny_tokenizer: Callable[..., Any], template: str
) -> None:
    frame = _frame(tiny_tokenizer(template))
    assert _text(frame.before) == "<|im_start|>user\nBe brief.\n\n"
    assert _text(frame.after) == "<|im_end|>\n<|im_start|>model"


@pytest.mark.parametrize("template", [None, "", BROKEN])
def test_without_a_usable_template_a_plain_one_serves(tiny_tokenizer: Callable[..., Any], template: str | None) -> None:
    assert chat.rendered(tiny_tokenizer(template)) == chat.PLAIN_TEMPLATE
    frame = _frame(tiny_tokenizer(template))
    assert _text(frame.before) == "Be brief.\n\n"
    assert _text(frame.after) == "\n\nAnswer: "
    assert _kinds(frame) == ["sink", "system", "template"]
    assert frame.before.pieces[0].token_ids == (ord("B"),)


def test_a_template_that_trims_is_cut_in_the_same_place(tiny_tokenizer: Callable[..., Any]) -> None:
    frame = _frame(tiny_tokenizer(TRIMMING), " spaced ")
    assert _text(frame.before) == "<|im_start|>system\n spaced <|im_end|>\n<|im_start|>user\n"


def test_an_engine_frames_each_system_prompt_once(tiny_engine: Callable[..., TransformersEngine]) -> None:
    engine = tiny_engine()
    assert engine.frame("One.") is engine.frame("One.")
    assert "One." in engine.decode(engine.frame("One.").before.token_ids)
    assert engine.frame("One.").after == engine.frame("Two.").after


# Some templates put the system prompt before the last words of the user (Mistral 7B v0.3 does).
LATE_SYSTEM = (
    "{% set system = messages[0].content if messages[0].role == 'system' %}"
    "{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}[I]"
    "{{ system ~ ' ' if loop.last and system }}{{ m.content }}[/I]{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (TRIMMING, "<|im_end|>\n<|im_start|>user\n"),
        (NO_SYSTEM, "<|im_end|>\n<|im_start|>user\n"),
        (LATE_SYSTEM, "</s>[I]"),
        (SILENT, "\n\n"),
        (BROKEN, "\n\n"),
        (None, "\n\n"),
    ],
)
def test_between_an_answer_and_the_next_words_stands_what_the_template_writes_there(
    tiny_tokenizer: Callable[..., Any], template: str | None, expected: str
) -> None:
    assert _text(_frame(tiny_tokenizer(template)).between) == expected


def test_a_conversation_of_three_turns_is_the_rendered_template(tiny_tokenizer: Callable[..., Any]) -> None:
    tokenizer = tiny_tokenizer()
    frame = _frame(tokenizer)
    said = [("system", "Be brief."), ("user", "Who?"), ("assistant", "Ann."), ("user", "When?")]
    messages = [{"role": role, "content": words} for role, words in said]
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    before, after, between = _text(frame.before), _text(frame.after), _text(frame.between)
    assert f"{before}Who?{after}Ann.{between}When?{after}" == expected


def test_neighbouring_pieces_of_one_kind_are_one_span() -> None:
    from unspoken.engines.protocol import Piece
    from unspoken.manifest import Span

    prompt = Prompt((Piece("content", (1, 2)), Piece("template", ()), Piece("content", (3,)), Piece("sink", (4,))))
    assert prompt.token_ids == (1, 2, 3, 4)
    assert prompt.spans() == (Span("content", 0, 3), Span("sink", 3, 4))
    assert (prompt + prompt).token_ids == (1, 2, 3, 4) * 2
