"""The chat template of a tokenizer document: found in a Hugging Face folder, checked, kept; it renders nothing.

A tokenizer document may have the key `CHAT`, an object with `template`, the source in jinja2's language, and
`special_tokens`, texts by the names that templates call them by. It is ours: the tokenizers library never sees it.
"""

import logging
from collections.abc import Mapping
from os.path import lexists
from pathlib import Path
from typing import Any

from flexref.errors import CheckpointError
from flexref.files import LARGEST_JSON_BYTES, as_text, read_bytes
from flexref.json_types.parsing import as_json

LOG = logging.getLogger(__name__)

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The special tokens that have a name of their own in a configuration, and in a template."""

CHAT = "chat_template"
"""The key of a tokenizer document."""

MOST_TEMPLATE_BYTES = 1 << 16
"""Bounds a template; the longest published ones have some 20,000 bytes."""

TEMPLATE_FILE, TEMPLATE_FOLDERS = "chat_template.jinja", ("additional_chat_templates", "chat_templates")
"""Where newer folders keep the default template, and others by their names."""

DEFAULT = "default"
"""The name of the template that is taken, where there are several."""


def chat_in(tokenizer_json: bytes, source: str) -> dict[str, Any] | None:
    """The value of `CHAT` in a tokenizer document, checked; None if it has none. Raises what `check_chat` raises."""
    if len(tokenizer_json) > LARGEST_JSON_BYTES:
        raise CheckpointError(f"{source}: {len(tokenizer_json)} bytes are no tokenizer; at most {LARGEST_JSON_BYTES}")
    document = as_json(as_text(tokenizer_json, source, CheckpointError), source, CheckpointError)
    if not isinstance(document, dict) or CHAT not in document:
        return None
    check_chat(document[CHAT], source)
    chat: dict[str, Any] = document[CHAT]
    return chat


def check_chat(chat: Any, source: str) -> None:
    """`CheckpointError`, which begins with `source`, if `chat` is no value of the key `CHAT`.

    Whether the template is one in its language is found out by who compiles it.
    """
    if not isinstance(chat, dict) or set(chat) != {"template", "special_tokens"}:
        raise CheckpointError(f"{source}: {CHAT} must be an object with `template` and `special_tokens`")
    _check_source(chat["template"], source)
    tokens = chat["special_tokens"]
    if not isinstance(tokens, dict) or not all(
        name in NAMED_TOKENS and isinstance(text, str) for name, text in tokens.items()
    ):
        raise CheckpointError(
            f"{source}: special_tokens of {CHAT} must be texts by the names {', '.join(NAMED_TOKENS)}"
        )


def chat_from_files(
    folder: Path, config: Mapping[str, Any], special_tokens: Mapping[str, str]
) -> dict[str, Any] | None:
    """The value of `CHAT` for a folder, whose tokenizer_config.json is `config`; None if it has no template.

    `chat_template.jinja` wins over the configuration, as in `transformers`; of several templates `default` is taken.
    Where there is none of that name one warning says so. Raises `CheckpointError` naming the damaged file.
    """
    found: dict[str, Any] = {}
    if lexists(folder / TEMPLATE_FILE):
        found[DEFAULT] = _read(folder / TEMPLATE_FILE)
    for name in TEMPLATE_FOLDERS:
        for path in sorted((folder / name).glob("*.jinja")):
            found[path.stem] = found.get(path.stem) or _read(path)
    if not found:
        found = _configured(config.get("chat_template"), str(folder / "tokenizer_config.json"))
    if not found:
        return None
    if DEFAULT not in found:
        LOG.warning(
            "%s has the chat templates %s and none of the name default: none is taken", folder, ", ".join(found)
        )
        return None
    chat = {"template": found[DEFAULT], "special_tokens": dict(special_tokens)}
    _check_source(chat["template"], str(folder))
    return chat


def _configured(value: Any, source: str) -> dict[str, Any]:
    """The templates of a configuration by name."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {DEFAULT: value}
    if not isinstance(value, list) or not all(
        isinstance(each, dict) and isinstance(each.get("name"), str) and isinstance(each.get("template"), str)
        for each in value
    ):
        raise CheckpointError(f"{source}: chat_template must be text, or a list of objects with name and template")
    return {each["name"]: each["template"] for each in value}


def _read(path: Path) -> str:
    return as_text(read_bytes(path, CheckpointError, most_bytes=LARGEST_JSON_BYTES), path, CheckpointError)


def _check_source(template: Any, source: str) -> None:
    """A template is text that can be stored, and not too long."""
    if not isinstance(template, str):
        raise CheckpointError(f"{source}: the chat template must be text, found {type(template).__name__}")
    try:
        nbytes = len(template.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise CheckpointError(f"{source}: the chat template is not valid Unicode at character {error.start}") from error
    if nbytes > MOST_TEMPLATE_BYTES:
        raise CheckpointError(
            f"{source}: the chat template has {nbytes} bytes, at most {MOST_TEMPLATE_BYTES} are taken"
        )
