"""Cut a chat template at the user's words, so that a segment can stand in their place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from unspoken.engines.protocol import Frame, Piece, Prompt

# Marks that survive templates which trim or escape; letters only, so that no template rewrites them.
SYSTEM_MARK = "UNSPOKENSYSTEMMARK"
USER_MARK = "UNSPOKENUSERMARK"
PLAIN_TEMPLATE = f"{SYSTEM_MARK}\n\n{USER_MARK}\n\nAnswer: "


def rendered(tokenizer: Any) -> str:
    """Return a tokenizer's chat template rendered around the two marks.

    A model without a template gets a plain one. A template that knows no system role gets the
    system prompt at the head of the user's words, as such models expect it.
    """
    if not getattr(tokenizer, "chat_template", None):
        return PLAIN_TEMPLATE
    system = {"role": "system", "content": SYSTEM_MARK}
    attempts = (
        [system, {"role": "user", "content": USER_MARK}],
        [{"role": "user", "content": f"{SYSTEM_MARK}\n\n{USER_MARK}"}],
    )
    for messages in attempts:
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception:  # noqa: S112 - a template is a program of its author's; refusing a role is how it answers
            continue
        if text.count(SYSTEM_MARK) == 1 and text.count(USER_MARK) == 1:
            return str(text)
    return PLAIN_TEMPLATE


def cut(template: str, system: str, encode: Callable[[str], tuple[int, ...]]) -> Frame:
    """Return the frame of a rendered template for a system prompt.

    The first token is the sink: the column every later one attends to when nothing else fits
    (StreamingLLM, arXiv 2309.17453). Each part is tokenised apart.
    """
    head, rest = template.split(SYSTEM_MARK)
    middle, tail = rest.split(USER_MARK)
    opening = encode(head) + encode(system)
    marks = len(encode(head))
    kinds: list[Piece] = [Piece("sink", opening[:1])]
    if marks > 1:
        kinds.append(Piece("template", opening[1:marks]))
    kinds += [Piece("system", opening[max(marks, 1) :]), Piece("template", encode(middle))]
    return Frame(Prompt(tuple(kinds)), Prompt((Piece("template", encode(tail)),)))
