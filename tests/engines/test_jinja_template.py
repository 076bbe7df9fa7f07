"""A chat template outside transformers is rendered as transformers renders it, and cannot reach out of its sandbox."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jinja2
import pytest

from unspoken.engines.chat import DAY, PLAIN_TEMPLATE, SYSTEM_MARK, USER_MARK, JinjaTemplate, rendered

SPECIAL = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
SYSTEM = {"role": "system", "content": " You are Vera. "}
USER = {"role": "user", "content": "Who runs the mill?\n"}
REPLY = {"role": "assistant", "content": "Anna."}
TALKS = {
    "asked": [USER],
    "with a system prompt": [SYSTEM, USER],
    "gone on": [SYSTEM, USER, REPLY, USER],
}
CHATML = (
    "{%- for message in messages %}\n    {%- if loop.first and messages[0]['role'] != 'system' %}\n"
    "        {{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}\n    {%- endif %}\n"
    "    {{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\n' }}\n{%- endif %}\n"
)
# As Llama 3.1's, without its tools.
LLAMA_3_1 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" + system_message + "<|eot|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
# What templates use of Jinja: blocks on lines of their own, loops left early, namespaces, JSON.
BLOCKS = """{% set seen = namespace(count=0) %}
{% for message in messages %}
    {% set seen.count = seen.count + 1 %}
    {% if message.role == 'assistant' %}
        {% continue %}
    {% endif %}
    {% if seen.count > 3 %}{% break %}{% endif %}
{{ message | tojson }}{{ message.content | tojson(indent=2) }}
{% endfor %}
{{ seen.count }}{{ dict(a=1) | tojson }}{{ bos_token }}{{ missing }}"""
UNDEFINED = (
    "{{ messages[0].content }}{% if tools is not none %}Tools{% endif %}{% if documents is none %}None{% endif %}"
)
GENERATION = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}{{ m.role }}: {{ m.content }}\n{% endif %}{% endfor %}"
)
TEMPLATES = {"chatml": CHATML, "llama 3.1": LLAMA_3_1, "mistral": MISTRAL, "blocks": BLOCKS}


@pytest.fixture
def theirs(tiny_tokenizer: Callable[..., Any]) -> Callable[[str], Any]:
    """A tokenizer of transformers with a template and the special tokens named."""

    def make(template: str) -> Any:
        tokenizer = tiny_tokenizer(template)
        tokenizer.bos_token = SPECIAL["bos_token"]
        return tokenizer

    return make


def both(template: str, theirs: Callable[[str], Any], talk: list[dict[str, str]], **options: Any) -> list[str]:
    """What this package and transformers make of a talk: text, or that it was refused."""
    found = []
    for tokenizer in (JinjaTemplate(template, SPECIAL), theirs(template)):
        try:
            found.append(tokenizer.apply_chat_template(talk, tokenize=False, **options))
        except jinja2.TemplateError as error:
            found.append(f"refused: {error}")
    return found


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("prompted", [False, True])
def test_a_template_is_rendered_as_transformers_renders_it(
    template: str, talk: str, prompted: bool, theirs: Callable[[str], Any]
) -> None:
    options: dict[str, Any] = {"add_generation_prompt": prompted}
    for more in ({}, {"date_string": "1 Jan 2000"}):
        ours, expected = both(TEMPLATES[template], theirs, TALKS[talk], **options, **more)
        assert ours == expected
        assert ours.startswith("refused: ") == (template == "mistral" and TALKS[talk][0] is SYSTEM)


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_frame_of_a_template_is_the_one_of_transformers(template: str, theirs: Callable[[str], Any]) -> None:
    ours = rendered(JinjaTemplate(TEMPLATES[template], SPECIAL))
    assert ours == rendered(theirs(TEMPLATES[template]))
    # `blocks` writes each message twice, so that the words cannot be cut out of it.
    assert (ours == PLAIN_TEMPLATE) == (template == "blocks")
    assert ours.index(SYSTEM_MARK) < ours.index(USER_MARK)


def test_a_template_that_knows_no_system_role_gets_the_prompt_with_the_users_words() -> None:
    assert rendered(JinjaTemplate(MISTRAL, SPECIAL)) == f"<|im_start|>[INST] {SYSTEM_MARK}\n\n{USER_MARK} [/INST]"


def test_the_date_is_a_fixed_one_and_so_is_today() -> None:
    assert f"Today Date: {DAY}\n" in rendered(JinjaTemplate(LLAMA_3_1, SPECIAL))
    today = JinjaTemplate("{{ strftime_now('%Y-%m-%d') }}", {})
    assert today.apply_chat_template([USER]) == DAY


def test_no_template_is_a_plain_one() -> None:
    assert rendered(JinjaTemplate(None, {})) == PLAIN_TEMPLATE
    assert rendered(JinjaTemplate("", {})) == PLAIN_TEMPLATE


def test_what_is_not_given_is_none_as_in_transformers(theirs: Callable[[str], Any]) -> None:
    ours, expected = both(UNDEFINED, theirs, [USER])
    assert expected == "Who runs the mill?\nNone"
    assert ours == expected


def test_a_template_that_marks_what_the_assistant_says_is_rendered(theirs: Callable[[str], Any]) -> None:
    ours, expected = both(GENERATION, theirs, TALKS["gone on"])
    assert "Anna." in expected
    assert ours == expected


# Ways out of a sandbox that Jinja has had, and others that ask for much of the machine.
TRICKS = {
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "class by filter": "{{ (''|attr('__class__')) | string }}",
    "class by format": "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "class by format map": "{{ '{a.__class__}'.format_map({'a': messages}) }}",
    "format taken apart": "{% set form = '{0.__class__}'.format %}{{ form(1) }}",
    "format by filter": "{{ ('{0.__class__}'|attr('format'))(1) }}",
    "globals": "{{ raise_exception.__globals__['os'] }}",
    "code": "{{ strftime_now.__code__ }}",
    "builtins": "{{ self.__init__.__globals__.__builtins__ }}",
    "generator": "{{ (messages | map('upper')).gi_frame }}",
    "changed messages": "{{ messages.append({'role': 'user', 'content': 'more'}) }}",
    "changed message": "{{ messages[0].update(content='other') }}",
    "long range": "{% for i in range(999999999) %}{% endfor %}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "extends": "{% extends '/etc/passwd' %}",
}


@pytest.mark.parametrize("name", TRICKS)
def test_a_template_that_reaches_out_of_the_sandbox_is_stopped(name: str) -> None:
    talk = [dict(USER)]
    try:
        made = JinjaTemplate(TRICKS[name], SPECIAL).apply_chat_template(talk)
    except (jinja2.TemplateError, OverflowError, TypeError):
        made = ""  # As it should be; what renders to nothing does no harm either.
    for word in ("class", "subclasses", "function", "module", "root:", "object", "code"):
        assert word not in made
    assert talk == [USER]


@pytest.mark.parametrize("name", TRICKS)
def test_a_model_whose_template_is_stopped_gets_a_plain_one(name: str) -> None:
    assert rendered(JinjaTemplate(TRICKS[name], SPECIAL)) == PLAIN_TEMPLATE
