"""Judges a finished folder with transformers on the CPU: held-out perplexity by text, and continuations to read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, OPTForCausalLM

PROMPTS = (
    "It was a dark and stormy night, and",
    "She opened the letter with trembling hands and",
    '"My dear Watson," said Holmes,',
    "The old man looked at the sea and",
    "In the morning they",
    "The function returns",
    "If you want to store data in a table,",
    "The king said to his servant,",
)


def perplexities(folder: Path, held: Path) -> dict[str, dict[str, float]]:
    """Per held-out file: tokens, perplexity per token and bits per byte, in float32 arithmetic.

    A text is cut into runs as long as the positions allow, each after </s>; every token of the text is predicted once.
    """
    model = OPTForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()  # type: ignore[no-untyped-call]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    length = int(model.config.max_position_embeddings)
    figures = {}
    for path in sorted(held.glob("*.txt")):
        text = path.read_text("utf-8")
        first, *ids = tokenizer(text)["input_ids"]
        nats = 0.0
        for at in range(0, len(ids), length):
            piece = torch.tensor([[first, *ids[at : at + length]]])
            with torch.no_grad():
                logits = model(piece[:, :-1]).logits
            nats += float(torch.nn.functional.cross_entropy(logits[0], piece[0, 1:], reduction="sum"))
        figures[path.stem] = {
            "bytes": len(text.encode()),
            "tokens": len(ids),
            "perplexity": math.exp(nats / len(ids)),
            "bits_per_byte": nats / math.log(2) / len(text.encode()),
        }
    return figures


def continuations(folder: Path, new_tokens: int, temperature: float, seed: int) -> list[dict[str, Any]]:
    """A greedy and a sampled continuation of every prompt."""
    model = OPTForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()  # type: ignore[no-untyped-call]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(seed)
    written = []
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        common = {"max_new_tokens": new_tokens, "pad_token_id": 1}
        greedy = model.generate(ids, do_sample=False, **common)[0, ids.shape[1] :]
        sampled = model.generate(ids, do_sample=True, temperature=temperature, top_k=0, **common)[0, ids.shape[1] :]
        decode = tokenizer.decode
        written.append(
            {
                "prompt": prompt,
                "greedy": decode(greedy, skip_special_tokens=True),
                "sampled": decode(sampled, skip_special_tokens=True),
            }
        )
    return written
