"""Cases of inputs: prompts, tokens, texts, questions, policies and machines that are not what they should be."""

import json
from pathlib import Path
from random import Random

from hostile_run.mutations import changed_bytes, json_bytes, odd_file
from hostile_run.shelf import Shelf
from hostile_run.trial import IN, Trial
from hostile_run.weight_files import DEVICE, GENERATE

LONG = 10_000_000
LONG_TEXT = 100_000
"""Bytes of a text all of which is computed."""


def trial(draw: Random, shelf: Shelf, folder: Path) -> Trial:
    """One input that is wrong, and a command that reads it."""
    what, command = draw.choice(_readers(shelf, str(folder / IN / "bad")))
    suffix = draw.choice(("", Path(what).suffix))
    bad = folder / IN / f"bad{suffix}"
    command = [str(bad) if part == str(folder / IN / "bad") else part for part in command]
    stdin = b""
    if draw.random() < 0.12:
        odd_file(draw, bad)
    else:
        content = _content(draw, (shelf.folder / what).read_bytes(), what)
        if "--input" in command and draw.random() < 0.15:
            stdin, command = content, ["-" if part == str(bad) else part for part in command]
        else:
            bad.write_bytes(content)
    return Trial([command], folder, stdin=stdin, outputs=frozenset({"out.h5", "out.npz", "plan.json"}))


def _readers(shelf: Shelf, bad: str) -> list[tuple[str, list[str]]]:
    """(what it should be, a command that reads `bad` as that)."""
    ids, words = shelf.path("half.h5"), shelf.path("words.h5")
    generate = [*GENERATE, "--model"]
    prompt = ["--input", shelf.path("ids.jsonl")]
    text = [("text.txt", ["--text"]), ("tokens.txt", ["--tokens"]), ("tokens.json", ["--tokens"])]
    rows = ("prompts.txt", "ids.jsonl")
    choices = ("letters.jsonl", "endings.jsonl", "words.jsonl")
    plan = ["plan", "--model", ids, "--rows", "4", "--prompt-len", "8", "--gen-len", "4", "--machine"]
    return [
        ("prompts.txt", [*generate, words, "--input", bad, *DEVICE]),
        ("prompts.jsonl", [*generate, words, "--input", bad, *DEVICE]),
        ("ids.jsonl", [*generate, ids, "--input", bad, *DEVICE]),
        ("policy.json", [*generate, ids, *prompt, "--policy", bad]),
        ("policy.json", ["eval", "--model", ids, "--tokens", shelf.path("tokens.txt"), "--policy", bad]),
        ("machine.json", [*plan, bad]),
        ("machine.json", [*generate, ids, *prompt, "--machine", bad]),
        *((what, ["eval", "--model", words, *option, bad, *DEVICE]) for what, option in text),
        *((what, ["eval", "--model", words, "--choices", bad, *DEVICE]) for what in choices),
        ("text.txt", ["compare-models", words, words, "--text", bad, *DEVICE]),
        ("prompts.jsonl", ["check", "--backend", "numpy", "--model", words, "--input", bad, "--no-contract", *DEVICE]),
        *((what, ["logits", "--model", words, "--input", bad, "-o", "out.npz", "--dtype", "float32"]) for what in rows),
        ("long.txt", ["convert", words, "out.h5", "--group-size", "16", "--calibrate", bad]),
    ]


def _content(draw: Random, whole: bytes, what: str) -> bytes:
    """The input, wrong in some way; now and then whole."""
    if what.endswith(".json") and what != "tokens.json":
        return json_bytes(draw, json.loads(whole))
    lines = whole.split(b"\n")
    how = draw.randrange(9)
    if how <= 3:
        return changed_bytes(draw, whole)
    if how <= 5 and what.endswith((".jsonl", ".json")):
        at = draw.randrange(len(lines))
        if lines[at]:
            lines[at] = json_bytes(draw, json.loads(lines[at]))
        return b"\n".join(lines)
    if how == 6:
        long = LONG_TEXT if what.startswith(("text", "long", "tokens")) else LONG
        return draw.choice((b"\n", lines[0], b"\xff", b" ", b"7 ")) * (long // max(1, len(lines[0])))
    if how == 7:
        return draw.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"\r", b"\x1a")) + whole.replace(b"\n", b"\r\n")
    return b"\n".join(draw.choices([*lines, b"[[1]]", b"{}", b"null", b"-5", b"1e5", b"99999999999999999999"], k=4))
