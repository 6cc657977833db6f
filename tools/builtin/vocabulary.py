"""Trains the byte-level BPE vocabulary and writes it as Hugging Face does; it knows no corpus and no model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

# The order of OPT's own vocabularies: <s> 0, <pad> 1, </s> 2, <unk> 3. OPT begins and ends a document with </s>.
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
PAD, END = 1, 2


def train(texts: Iterable[str], size: int) -> Tokenizer:
    """A vocabulary of `size` tokens, the specials among them; like OPT's it puts </s> before every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[AddedToken(token, special=True, normalized=True) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", pair="</s> $A </s> $B", special_tokens=[("</s>", END)]
    )
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path, positions: int) -> None:
    """tokenizer.json (without blanks: it travels in the model file) and tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    compact = json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, separators=(",", ":"))
    (folder / "tokenizer.json").write_text(compact, "utf-8")
    config = {
        "add_bos_token": True,
        "add_prefix_space": False,
        "bos_token": "</s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "errors": "replace",
        "model_max_length": positions,
        "pad_token": "<pad>",
        # The class that takes tokenizer.json as it stands.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
