"""Cut a chat template at the user's words, so that a segment can stand in their place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from unspoken.engines.protocol import Frame, Piece, Prompt

# Marks that survive templates which trim or escape; letters only, so that no template rewrites them.
SYSTEM_MARK = "UNSPOKENSYSTEMMARK"
USER_MARK = "UNSPOKENUSERMARK"
REPLY_MARK = "UNSPOKENREPLYMARK"
NEXT_MARK = "UNSPOKENNEXTMARK"
# Some templates write the date into the prompt: a fixed one, or a cache would be another one every day.
DAY = "26 Jul 2024"
PLAIN_TEMPLATE = f"{SYSTEM_MARK}\n\n{USER_MARK}\n\nAnswer: "
PLAIN_BETWEEN = "\n\n"


@dataclass(frozen=True)
class JinjaTemplate:
    """A chat template outside transformers, rendered with the same names and settings as there.

    Attributes:
        chat_template: The template, in Jinja; None for a model that has none.
        special: The special tokens it may name ("bos_token", "eos_token").
    """

    chat_template: str | None
    special: dict[str, str]

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> str:
        """Return the messages as the model expects them; called as a tokenizer's method of this name is.

        Templates come with model files, so they run in Jinja's sandbox.

        Raises:
            jinja2.TemplateError: If the template is broken or refuses the messages.
        """
        import json

        from jinja2 import TemplateError
        from jinja2.ext import Extension, loopcontrols
        from jinja2.nodes import Node
        from jinja2.parser import Parser
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(message: str) -> str:
            raise TemplateError(message)

        class Generation(Extension):
            """Renders what stands between `generation` and `endgeneration`, marks that training uses."""

            tags = {"generation"}

            def parse(self, parser: Parser) -> list[Node]:
                next(parser.stream)
                return parser.parse_statements(("name:endgeneration",), drop_needle=True)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
        )
        environment.filters["tojson"] = lambda value, **how: json.dumps(value, ensure_ascii=False, **how)
        environment.globals["raise_exception"] = refuse
        environment.globals["strftime_now"] = lambda form: DAY
        options.pop("tokenize", None)  # Ours never does.
        given = {"tools": None, "documents": None} | options
        return environment.from_string(self.chat_template or "").render(messages=messages, **given, **self.special)


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
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, date_string=DAY)
        except Exception:  # noqa: S112 - a template is a program of its author's; refusing a role is how it answers
            continue
        if text.count(SYSTEM_MARK) == 1 and text.count(USER_MARK) == 1:
            return str(text)
    return PLAIN_TEMPLATE


def rendered_between(tokenizer: Any) -> str:
    """Return what a tokenizer's chat template writes between an answer and the user's next words.

    It is rendered without a system prompt: some templates put that before the last words of the user, and it would
    stand between them. A template that refuses three turns, or writes words twice, gets an empty line.
    """
    if not getattr(tokenizer, "chat_template", None):
        return PLAIN_BETWEEN
    said = ((USER_MARK, "user"), (REPLY_MARK, "assistant"), (NEXT_MARK, "user"))
    messages = [{"role": role, "content": mark} for mark, role in said]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, date_string=DAY)
    except Exception:  # A template is a program of its author's; refusing is how it answers.
        return PLAIN_BETWEEN
    if text.count(REPLY_MARK) != 1 or text.count(NEXT_MARK) != 1:
        return PLAIN_BETWEEN
    return str(text.split(REPLY_MARK)[1].split(NEXT_MARK)[0])


def cut(template: str, between: str, system: str, encode: Callable[[str], tuple[int, ...]]) -> Frame:
    """Return the frame of a rendered template for a system prompt.

    The first token is the sink: the column every later one attends to when nothing else fits
    (StreamingLLM, arXiv 2309.17453). Each part is tokenised apart.

    Args:
        template: One exchange, as `rendered` returns it.
        between: What follows an answer, as `rendered_between` returns it.
        system: The system prompt.
        encode: The model's tokenizer.
    """
    head, rest = template.split(SYSTEM_MARK)
    middle, tail = rest.split(USER_MARK)
    opening = encode(head) + encode(system)
    marks = len(encode(head))
    kinds: list[Piece] = [Piece("sink", opening[:1])]
    if marks > 1:
        kinds.append(Piece("template", opening[1:marks]))
    kinds += [Piece("system", opening[max(marks, 1) :]), Piece("template", encode(middle))]
    after, next_turn = (Prompt((Piece("template", encode(part)),)) for part in (tail, between))
    return Frame(Prompt(tuple(kinds)), after, next_turn)
