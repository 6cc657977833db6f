"""Chats as token ids, by way of a weight file, against `transformers`' apply_chat_template on the same folder."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle_kit.checkpoints import SMALL_125M, new_model
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer

import flexref
from flexref.cli.main import COMMANDS, command_group, run

CHATML = """{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

LLAMA_2 = """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}
{%- set system_message = '<<SYS>>\\n' + messages[0]['content'].strip() + '\\n<</SYS>>\\n\\n' %}
{%- else %}{% set loop_messages = messages %}{% set system_message = '' %}{% endif %}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- set content = system_message + message['content'] if loop.index0 == 0 else message['content'] %}
    {%- if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content | trim + ' [/INST]' }}
    {%- elif message['role'] == 'assistant' %}{{ ' ' + content | trim + ' ' + eos_token }}{% endif %}
{%- endfor %}"""

ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{% generation %}{{ '<|assistant|>\\n' + message['content'] + eos_token }}{% endgeneration %}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""

TOOLS = """{%- macro line(role, text) %}{{ bos_token ~ role }}: {{ text | tojson }}{% endmacro -%}
{%- set ns = namespace(users=0, last='') -%}
{% for message in messages -%}
    {% if message.role == 'user' %}{% set ns.users = ns.users + 1 %}{% endif %}
    {% if message.role not in ['user', 'system'] %}{% continue %}{% endif -%}
    {% set ns.last = message.content.split('\\n')[-1] | default('none', true) -%}
    {{ line(message.role | upper, message.content) }}{{ message | tojson(indent=1) }}
{% endfor %}
{% if tools is not none or documents %}never{% endif %}
{% set users = messages | selectattr('role', '==', 'user') | list %}
{{ ns.users }} {{ ns.last }} {{ users[-1:] | map(attribute='content') | join }}"""

TEMPLATES = {"chatml": CHATML, "llama-2": LLAMA_2, "zephyr": ZEPHYR, "tools": TOOLS}
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]

CONTENTS = st.text(max_size=12) | st.sampled_from(["</s>", " <s>\n", "<|im_end|>", "'\"<&{{ x }}", "  spaces \n\n"])
TURNS = st.lists(st.tuples(CONTENTS, CONTENTS), max_size=2)


@st.composite
def chats(draw: st.DrawFn) -> list[dict[str, str]]:
    """A chat as those templates allow it: a system message, perhaps, then a user and the model in turns."""
    chat = [{"role": "system", "content": draw(CONTENTS)}] if draw(st.booleans()) else []
    for asked, answered in draw(TURNS):
        chat += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return [*chat, {"role": "user", "content": draw(CONTENTS)}]


@pytest.fixture(scope="module", params=TEMPLATES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An engine on the converted folder, and `transformers`' tokenizer of it."""
    folder = tmp_path_factory.mktemp(request.param)
    letters = [*SPECIAL, *sorted(ByteLevel.alphabet())]
    new_model(SMALL_125M.changed(vocabulary=len(letters))).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({token: place for place, token in enumerate(letters)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    config = {
        **named,
        "add_bos_token": True,
        "additional_special_tokens": SPECIAL[4:],
        "tokenizer_class": "GPT2Tokenizer",
    }
    if request.param == "llama-2":
        (folder / "chat_template.jinja").write_text(TEMPLATES[request.param])
        config["chat_template"] = "never"
    else:
        config["chat_template"] = TEMPLATES[request.param]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    out = Path(folder) / "model.h5"
    assert run(command_group(COMMANDS), ["convert", str(folder), str(out)]) == 0
    with flexref.load(out) as engine:
        yield engine, AutoTokenizer.from_pretrained(folder)


@given(chat=chats(), prompt=st.booleans())
def test_a_chat_is_the_text_and_the_tokens_that_transformers_makes_of_it(
    both: Any, chat: list[dict[str, str]], prompt: bool
) -> None:
    engine, oracle = both
    wanted = oracle.apply_chat_template(chat, add_generation_prompt=prompt, tokenize=False)
    text = engine.chat_template.render(chat, prompt)
    assert text == wanted
    ids = oracle.apply_chat_template(chat, add_generation_prompt=prompt, return_dict=False)
    assert engine.tokenizer.encode(text, add_special=False) == ids
