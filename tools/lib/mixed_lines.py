"""The lines of a batch job of every kind for the built-in model, the same for the same seed; it knows no file."""

import json
import random
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

TEXT = (
    "the king said unto his people that they should go down to the sea and there was no wind upon the water for many "
    "days a letter came from London which she read aloud in the garden while Tom looked at the whale with great joy "
    "Sherlock Holmes: a database table holds rows, and every row has a key; naïve café 東京 and “what say you?” 🐳"
)

WORDS = TEXT.split()

VOCABULARY = 8192
"""Of the built-in model."""

BAD_SHARE, BLANK_SHARE, PLAIN_SHARE, CHAT_SHARE = 0.08, 0.02, 0.1, 0.05
"""Of all lines. The built-in model has no chat template: chats are served by a model that has one, or fail."""

Body = dict[str, Any]


def mixed_lines(count: int, seed: int = 0, max_tokens: int = 16, prompt_words: int = 40) -> Iterator[bytes]:
    """So many lines, each without its end. A line depends on its number and the other arguments, not on `count`.

    They ask for up to `max_tokens` new tokens after up to so many words, or token ids.
    """
    for number in range(1, count + 1):
        yield _line(random.Random(f"{seed} {number}"), number, max_tokens, prompt_words)


def _line(draws: random.Random, number: int, max_tokens: int, prompt_words: int) -> bytes:
    kind = draws.random()
    if kind < BLANK_SHARE:
        return draws.choice((b"", b"  ", b"\t"))
    if kind < BLANK_SHARE + BAD_SHARE:
        return _bad(draws, number)
    if kind < BLANK_SHARE + BAD_SHARE + PLAIN_SHARE:
        return _json(_plain(draws, number, max_tokens, prompt_words))
    if kind < BLANK_SHARE + BAD_SHARE + PLAIN_SHARE + CHAT_SHARE:
        return _json(_enveloped(number, _chat(draws, max_tokens, prompt_words), "/v1/chat/completions"))
    return _json(_enveloped(number, _completion(draws, max_tokens, prompt_words)))


def _json(record: Any) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode()


def _enveloped(number: int, body: Body, url: str = "/v1/completions") -> dict[str, Any]:
    return {"custom_id": f"line-{number}", "method": "POST", "url": url, "body": body}


def _text(draws: random.Random, words: int) -> str:
    return " ".join(draws.choice(WORDS) for _ in range(draws.randint(1, words)))


def _ids(draws: random.Random, most: int) -> list[int]:
    return [draws.randrange(4, VOCABULARY) for _ in range(draws.randint(1, most))]


def _completion(draws: random.Random, max_tokens: int, words: int) -> Body:
    prompts: tuple[Callable[[], Any], ...] = (
        lambda: _text(draws, words),
        lambda: _text(draws, words),
        lambda: _ids(draws, words),
        lambda: [_text(draws, words), _text(draws, words)],
        lambda: [_ids(draws, words), _text(draws, words)],
        lambda: [_ids(draws, words), _ids(draws, words), _ids(draws, words)],
    )
    body: Body = {"model": "demo", "prompt": draws.choice(prompts)(), "max_tokens": draws.randint(1, max_tokens)}
    body.update(_settings(draws))
    if draws.random() < 0.15:
        body["logprobs"] = draws.choice((0, 1, 5))
    elif draws.random() < 0.15:
        body["echo"] = True
    return body


def _chat(draws: random.Random, max_tokens: int, words: int) -> Body:
    messages = [{"role": "user", "content": _text(draws, words)}]
    if draws.random() < 0.5:
        messages = [{"role": "system", "content": "Be brief."}, *messages]
    body: Body = {"messages": messages, "max_completion_tokens": draws.randint(1, max_tokens), **_settings(draws)}
    if draws.random() < 0.3:
        body.update(logprobs=True, top_logprobs=draws.choice((0, 3)))
    return body


def _settings(draws: random.Random) -> Body:
    """Some of what may be asked of any row."""
    may: Mapping[str, Callable[[], Any]] = {
        "temperature": lambda: draws.choice((0, 0, 0.7, 1.3)),
        "top_p": lambda: draws.choice((0.5, 0.95)),
        "top_k": lambda: draws.choice((-1, 5, 40)),
        "seed": lambda: draws.choice((0, 7, -7, 1 << 63)),
        "stop": lambda: draws.choice((".", [" the", "\n"], ["and"])),
        "n": lambda: draws.choice((1, 2, 3)),
        "ignore_eos": lambda: draws.random() < 0.5,
        "presence_penalty": lambda: 0,
        "stream": lambda: False,
        "user": lambda: "somebody",
        "logit_bias": lambda: None,
    }
    return {name: value() for name, value in may.items() if draws.random() < 0.2}


def _plain(draws: random.Random, number: int, max_tokens: int, words: int) -> Body:
    record: Body = {"prompt": draws.choice((_text(draws, words), _ids(draws, words)))}
    if draws.random() < 0.5:
        record["id"] = draws.choice((number, f"plain-{number}"))
    record["max_new_tokens"] = draws.randint(1, max_tokens)
    if draws.random() < 0.3:
        record.update(temperature=0.9, seed=draws.randrange(100))
    return record


BAD_BODIES: tuple[Body, ...] = (
    {},
    {"prompt": ""},
    {"prompt": [VOCABULARY]},
    {"prompt": [5] * 513},
    {"prompt": "a", "max_tokens": 0},
    {"prompt": "a", "temperature": -1},
    {"prompt": "a", "top_p": 0},
    {"prompt": "a", "n": 0},
    {"prompt": "a", "best_of": 3},
    {"prompt": "a", "presence_penalty": 0.5},
    {"prompt": "a", "logit_bias": {"5": 1}},
    {"prompt": "a", "stream": True},
    {"prompt": "a", "temprature": 1},
    {"prompt": "a", "echo": True, "logprobs": 1},
    {"prompt": "a", "stop": ["a", ""]},
)
"""Bodies of completions of which none can be served."""

BAD_LINES: Mapping[str, bytes] = MappingProxyType(
    {
        "no JSON": b"{",
        "no object": b"[1, 2]",
        "no UTF-8": b'{"prompt": "a\xff"}',
        "half a pair": b'{"prompt": "\\ud800"}',
        "a key twice": b'{"prompt": "a", "prompt": "b"}',
        "too deep": b'{"prompt": ' + b"[" * 2000 + b"]" * 2000 + b"}",
        "no number": b'{"prompt": "a", "temperature": NaN}',
        "an unknown key": b'{"text": "a"}',
        "no custom_id": b'{"method": "POST", "url": "/v1/completions", "body": {"prompt": "a"}}',
        "another method": b'{"custom_id": "g", "method": "GET", "url": "/v1/completions", "body": {"prompt": "a"}}',
        "another url": b'{"custom_id": "e", "method": "POST", "url": "/v1/embeddings", "body": {"input": "a"}}',
    }
)
"""Lines of which none can be served, by what is wrong with each."""


def _bad(draws: random.Random, number: int) -> bytes:
    """A line that cannot be served, or one with the custom_id of an earlier one."""
    kind = draws.randrange(5)
    if kind == 0:
        return _json(_enveloped(max(1, number - draws.randint(1, 30)), {"prompt": "The same name", "max_tokens": 2}))
    if kind < 3:
        return _json(_enveloped(number, draws.choice(BAD_BODIES)))
    return draws.choice(list(BAD_LINES.values()))
