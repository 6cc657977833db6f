"""Chat templates: what they write, what they are refused, and that no template works without end."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2.ext
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from flexref.errors import CheckpointError, PromptError
from flexref.text.chat_document import CHAT, MOST_TEMPLATE_BYTES
from flexref.text.chat_template import MOST_STEPS, ChatTemplate
from flexref.text.tokenizer import Tokenizer, tokenizer_json_from_files

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' "
    "+ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
PIECES = """{%- set ns = namespace(found=false, text='') -%}
{%- macro shown(text, mark='*') -%}{{ mark ~ text | trim | replace('a', 'bb') ~ mark }}{%- endmacro -%}
{{ bos_token }}{% for message in messages[1:] if message.role != 'tool' %}
    {% if loop.index0 % 2 == 0 and not loop.last %}even{% elif message.content is string %}{{ loop.index }}{% endif %}
    {% if message.content | length > 8 %}{% continue %}{% endif %}
    {{- shown(message.content | upper) }}{{ message | tojson(indent=2) }}
    {%- set ns.text = ns.text + message.content.split('b')[0] + ' '.join([message.role, 'x'] * 2) %}
{% endfor %}
{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join('/') }}
{% set block %}{{ ns.text }}{% for key, value in messages[0].items() %}{{ key }}={{ value }}{% endfor %}{% endset %}
{{ block | indent(2, true) }}{{ missing }}{{ messages[-1]['content'][::-1] | default('none', true) }}{{ 7 // 2 * 1.5 }}
"""

TEXT = st.text(alphabet="ab<&\n {%}ä", max_size=12)
CHATS = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "tool", "system"]), "content": TEXT}), min_size=1
)


@pytest.fixture(scope="module")
def plain() -> ImmutableSandboxedEnvironment:
    """jinja2's own sandbox as `transformers` sets it up, without any bounds."""
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    made.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    return made


@pytest.mark.parametrize("source", [CHATML, PIECES])
@given(chat=CHATS, prompt=st.booleans())
def test_what_is_written_is_what_jinja2_writes_without_bounds(
    plain: ImmutableSandboxedEnvironment, source: str, chat: list[dict[str, str]], prompt: bool
) -> None:
    wanted = plain.from_string(source).render(messages=chat, add_generation_prompt=prompt, bos_token="<s>")
    assert ChatTemplate(source, {"bos_token": "<s>"}).render(chat, prompt) == wanted


SETS, DOUBLE = "{% set ns = namespace(x=[1], y='aa', n=7) %}", "{% for i in range(60) %}"
NESTED = f"{SETS}{DOUBLE}{{% set ns.x = [ns.x, ns.x] %}}{{% endfor %}}"
ENDLESS = {
    "loops in loops": "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "a loop whose values are passed over": "{% set r = range(100000) %}{% for a in r %}{% for b in r if false %}"
    "{% endfor %}{% endfor %}",
    "macros": "{% macro f(n) %}{% for a in 'abc' %}{{ f(n + 1) }}{% endfor %}{% endmacro %}{{ f(1) }}",
    "macros as deep as Python lets them": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a macro in a long loop": "{% macro f() %}{% endmacro %}{% for a in range(99999) %}{% for b in 'abcdefghi' %}"
    "{{ f() }}{% endfor %}{% endfor %}",
    "long loops over short bodies": "{% for a in range(1000) %}{% for b in range(1000) %}{{ 'x' if a else b }}"
    "{% endfor %}{% endfor %}",
    "a long loop over a long body": "{% set r = range(100000) %}{% for a in r %}{% for b in r %}"
    f"{'{% if a %}{% endif %}' * 500}{{% endfor %}}{{% endfor %}}",
    "a long text that replaces each letter of another": "{{ ('a' * 1000000) | replace('a', 'b' * 1000000) }}",
    "the same by a method": "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
    "static text in a block that is set": "{% set x %}{% for a in range(100000) %}"
    + "x" * 9999
    + "{% endfor %}{% endset %}",
    "a text times a number": "{{ 'a' * 1000000000 }}",
    "a number times a list": "{{ (1000000000 * [1]) | length }}",
    "a text that doubles": f"{SETS}{DOUBLE}{{% set ns.y = ns.y ~ ns.y %}}{{% endfor %}}",
    "a sum that doubles": f"{SETS}{DOUBLE}{{% set ns.y = ns.y + ns.y %}}{{% endfor %}}",
    "a list that doubles": f"{SETS}{DOUBLE}{{% set ns.x = ns.x + ns.x %}}{{% endfor %}}",
    "a block that doubles": f"{SETS}{DOUBLE}{{% set z %}}{{{{ ns.y }}}}{{{{ ns.y }}}}{{% endset %}}{{% set ns.y = z %}}"
    "{% endfor %}",
    "lists in lists that are written": NESTED + "{{ ns.x }}",
    "lists in lists that are compared": NESTED + "{{ ns.x == ns.x[0] }}",
    "lists in lists as JSON": NESTED + "{{ ns.x | tojson }}",
    "lists in lists that a filter makes text of": NESTED + "{{ ns.x | upper }}",
    "lists in lists that are joined": NESTED + "{{ '' ~ ns.x }}",
    "lists in lists that are looked for": NESTED + "{{ ns.x is in [1] }}",
    "a whole number that squares": f"{SETS}{DOUBLE}{{% set ns.n = ns.n * ns.n %}}{{% endfor %}}",
    "a power": "{{ 9 ** 999999999 }}",
    "a filter that replaces": f"{SETS}{DOUBLE}{{% set ns.y = ns.y | replace('a', 'aaaaaaaa') %}}{{% endfor %}}",
    "a method that replaces": f"{SETS}{DOUBLE}{{% set ns.y = ns.y.replace('', 'aaaaaaaa') %}}{{% endfor %}}",
    "a filter that joins": f"{SETS}{DOUBLE}{{% set ns.y = range(100000) | join(ns.y) %}}{{% endfor %}}",
    "a method that joins": f"{SETS}{DOUBLE}{{% set ns.y = ns.y.join('a' * 100000) %}}{{% endfor %}}",
    "long static text": f"{{% for a in range(100000) %}}{'x' * 10000}{{% endfor %}}",
    "a search in a long list": "{% set r = range(100000) | list %}{% for a in r %}{{ 'a' in r }}{% endfor %}",
    "slices": "{% set t = 'a' * 10000000 %}{% for a in range(100000) %}{% set b = t[1:] %}{% endfor %}",
    "an indent": "{{ 'a' | indent(1000000000, true) }}",
    "an indent in JSON": "{{ [1] | tojson(indent=1000000000) }}",
    "a text that a test formats": "{{ '%1000000000d' is even }}",
    "a text that is formatted": "{{ '%1000000000d' % 1 }}",
    "a long range": "{{ range(1000000000) | list }}",
    "a filter over a filter": "{% for a in range(100000) %}{{ range(100000) | map('string') | list }}{% endfor %}",
    "messages that are read again and again": "{% for a in range(100000) %}{% for b in messages %}"
    "{{ b.items() | list | string | length }}{% endfor %}{% endfor %}",
}


@pytest.mark.parametrize("what", ENDLESS)
def test_what_would_never_end_or_fill_the_memory_ends_as_an_error_in_one_line(what: str) -> None:
    with pytest.raises(PromptError) as told:
        ChatTemplate(ENDLESS[what], {}).render(MESSAGES)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 300


REFUSED_AT_RUN = {
    "'format'": "{{ '{:>1000000000}'.format(1) }}",
    "'ljust'": "{{ 'a'.ljust(1000000000) }}",
    "builtin_function_or_method as if it were text": "{{ '' ~ messages.copy }}",  # its text has an address in it
    "Namespace as if": "{{ namespace() }}",
    "unsafe": "{{ ''.__class__.__mro__ }}",
    "'_x'": "{{ namespace(_x=1) }}",
    "today's date": "{{ strftime_now('%d') }}",
    "refuses the messages: only users": "{{ raise_exception('only\\nusers') }}",
    "unsupported operand": "{{ 1 + 'a' }}",
    "division": "{{ 1 / 0 }}",
    "'lipsum' is undefined": "{{ lipsum(1) }}",
    "macros more than 32 deep": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(1) }}",
    "lists in lists more than 16 deep": f"{{{{ {'[' * 17}{']' * 17} }}}}",
    "indices": "{{ messages.index('x', 'y') }}",
}


@pytest.mark.parametrize("said", REFUSED_AT_RUN)
def test_what_a_template_may_not_do_is_named_in_one_line(said: str) -> None:
    with pytest.raises(PromptError, match=r"^the chat template [^\n]*$") as told:
        ChatTemplate(REFUSED_AT_RUN[said], {}).render(MESSAGES)
    assert said in str(told.value)


REFUSED = {
    "line 2": "{{ a }}\n{% for %}",
    "No filter named 'center'": "{{ 'a' | center(1000000000) }}",
    "No filter named 'random'": "{{ messages | random }}",
    "include is not supported": "{% include 'a' %}",
    "block is not supported": "{% block a %}{{ self.a() }}{% endblock %}",
    "calls itself": "{% for a in messages recursive %}{{ loop(a) }}{% endfor %}",
    "'__class__'": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "nested more than": f"{{{{ 1{'+1' * 200} }}}}",
    "recursion": f"{{{{ {'(' * 3000}1{')' * 3000} }}}}",
    "nested blocks": "{% for a in 'a' %}" * 30 + "{% endfor %}" * 30,
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_is_no_template_or_cannot_be_bounded_is_refused_before_it_is_used(said: str) -> None:
    with pytest.raises(CheckpointError, match=r"^somewhere: [^\n]*$") as told:
        ChatTemplate(REFUSED[said], {}, "somewhere")
    assert said in str(told.value)


PARTS = (
    *("{{ ", " }}", "{% for m in ", "{% endfor %}", "{% if ", "{% endif %}", "{% set x = ", "{% filter reject %}"),
    *("{% endfilter %}", "{% set x %}", "{% endset %}", "{% call f() %}", "{% endcall %}", " %}", "messages", "m.role"),
    *("x", "f", "(", ")", "[0]", "[:2]", " | ", "upper", "tojson", "map('int')", "join", " ~ ", " * ", " % ", "'%d'"),
    *("9", "-1.5", ".items()", ".split('b')", " is in ", " == ", "loop", "ns", "{'a': 1}", "range(3)", "none", "*"),
)


@given(parts=st.lists(st.sampled_from(PARTS), max_size=30))
@example(parts=["{% filter reject %}", "x", "{% endfilter %}"])
@example(parts=["{{ ", "9", "[0]", " }}"])
def test_junk_is_written_or_refused_in_one_line_the_same_each_time(parts: list[str]) -> None:
    source = "{% set ns = namespace(x=1) %}{% macro f(a=1) %}{{ a }}{% endmacro %}" + "".join(parts)
    said = []
    for _ in range(2):
        try:
            said.append(ChatTemplate(source, {}).render(MESSAGES))
        except (CheckpointError, PromptError) as error:
            said.append(str(error))
            assert "\n" not in said[-1]
    assert said[0] == said[1]


def test_a_template_that_asks_whether_there_is_a_date_gets_none() -> None:
    source = "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% else %}26 Jul 2024{% endif %}"
    assert ChatTemplate(source, {}).render(MESSAGES) == "26 Jul 2024"


def test_a_long_chat_of_long_messages_has_steps_enough() -> None:
    chat = [{"role": "user", "content": "x" * 100_000}] * 50 + [{"role": "user", "content": "y"}] * 3000
    assert ChatTemplate(PIECES, {}).render(chat).count("y") > 3000
    assert len(chat) * 5_000 > MOST_STEPS


def test_a_message_may_be_an_answer_as_clients_have_it() -> None:
    empty = dict.fromkeys(("refusal", "tool_calls", "function_call", "audio", "name"))
    message = {"content": "a", "refusal": None, "role": "assistant", **empty}
    assert ChatTemplate("{{ messages[0] }}", {}).render([message]) == "{'content': 'a', 'role': 'assistant'}"


def test_contents_in_parts_are_joined_by_line_feeds() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert ChatTemplate("{{ messages[0].content }}", {}).render([{"role": "user", "content": parts}]) == "one\ntwo"


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "at least one message"),
        ("text", "must be a list"),
        (None, "must be a list"),
        ([1], "message 1 must be an object"),
        ([*MESSAGES, {"content": "a"}], "message 3: role must be text, found None"),
        ([{"role": "user"}], "message 1: content must be text"),
        ([{"role": "user", "content": []}], "message 1: content must be text"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "content of type 'image_url' is not"),
        ([{"role": "user", "content": [{"type": "text", "text": 1}]}], "must have its text"),
        ([{"role": "user", "content": ["a"]}], "content of type None"),
        ([{"role": "user", "content": "a", "tool_calls": []}], "'tool_calls' is not served"),
    ],
)
def test_messages_that_are_not_served_are_told_by_place_and_name(messages: Any, said: str) -> None:
    with pytest.raises(PromptError, match=r"^message[^\n]*$") as told:
        ChatTemplate(CHATML, {}).render(messages)
    assert said in str(told.value)


def folder_with(write_gpt2: Callable[..., Path], folder: Path, template: Any, **more: Any) -> Path:
    config = {"bos_token": "</s>", "eos_token": {"content": "</s>"}, "add_bos_token": True, "chat_template": template}
    return write_gpt2(folder, tokenizer_config={**config, **more})


def chat_of(folder: Path) -> ChatTemplate | None:
    data = tokenizer_json_from_files(folder)
    assert data is not None
    return Tokenizer.from_json(data).chat_template


@pytest.mark.parametrize(
    "template", [CHATML, [{"name": "tool", "template": "x"}, {"name": "default", "template": CHATML}]]
)
def test_a_folders_template_and_its_named_tokens_come_along(
    tmp_path: Path, write_gpt2: Callable[..., Path], template: Any
) -> None:
    chat = chat_of(folder_with(write_gpt2, tmp_path, template))
    assert chat is not None
    assert (chat.source, chat.special_tokens) == (CHATML, {"bos_token": "</s>", "eos_token": "</s>"})


def test_a_file_of_its_own_wins(tmp_path: Path, write_gpt2: Callable[..., Path]) -> None:
    folder = folder_with(write_gpt2, tmp_path, CHATML)
    (folder / "chat_template.jinja").write_text("ä{{ eos_token }}\n", encoding="utf-8")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("rag")
    chat = chat_of(folder)
    assert chat is not None
    assert chat.render(MESSAGES) == "ä</s>"


def test_templates_without_a_default_are_told_and_left(
    tmp_path: Path, write_gpt2: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    assert chat_of(folder_with(write_gpt2, tmp_path, [{"name": "tool", "template": "x"}])) is None
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path} has the chat templates tool and none of the name default: none is taken"
    ]


def test_a_folder_without_a_template_is_the_document_that_it_was(
    tmp_path: Path, write_gpt2: Callable[..., Path]
) -> None:
    data = tokenizer_json_from_files(write_gpt2(tmp_path, tokenizer_config={"bos_token": "</s>"}))
    assert data is not None
    assert CHAT not in json.loads(data)
    assert Tokenizer.from_json(data).chat_template is None


@pytest.mark.parametrize(
    "template", [1, {"default": "x"}, [{"name": "x"}], "{% for %}", "x" * (MOST_TEMPLATE_BYTES + 1), "\ud800"]
)
def test_a_folder_whose_template_is_none_is_refused_by_name(
    tmp_path: Path, write_gpt2: Callable[..., Path], template: Any
) -> None:
    with pytest.raises(CheckpointError, match=rf"^{tmp_path}[^\n]*$"):
        tokenizer_json_from_files(folder_with(write_gpt2, tmp_path, template))


WRONG = ({}, {"template": "x"}, {"template": 1, "special_tokens": {}})


@pytest.mark.parametrize("chat", [1, *WRONG, {"template": "x", "special_tokens": {"messages": "x"}}])
def test_a_documents_template_is_hostile_until_checked(document: dict[str, Any], chat: Any) -> None:
    with pytest.raises(CheckpointError, match=r"^here: [^\n]*$"):
        Tokenizer.from_json(json.dumps({**document, CHAT: chat}).encode(), "here")


def test_the_text_of_a_chat_is_encoded_without_what_a_text_begins_with(bos_document: dict[str, Any]) -> None:
    tokenizer = Tokenizer.from_json(
        json.dumps(
            {**bos_document, CHAT: {"template": "{{ bos_token }}x", "special_tokens": {"bos_token": "</s>"}}}
        ).encode()
    )
    assert tokenizer.chat_template is not None
    text = tokenizer.chat_template.render(MESSAGES)
    assert tokenizer.encode(text, add_special=False) == tokenizer.encode("x")
    assert tokenizer.encode(text) == [2, *tokenizer.encode("x")]
