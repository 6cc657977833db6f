"""The figures of the numba port: beside numpy's and `transformers`' of one machine in one run, and what memory gives.

Weights are random, as everywhere where speed is measured. What is compared runs in turns, and the least of the repeats
counts, so that a machine that is busy for a while is busy for all.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import transformers

import flexref
from flexref.architecture.published import published
from flexref.backend.protocol import QuantizedMatrix
from flexref.engine.request import Request
from flexref.policy import Policy
from flexref.profile.kept_machines import product_threads
from flexref.storage.random_weights import random_file

Runs = dict[str, Callable[[], tuple[float, float]]]
"""Calls that give seconds of prefill and of decode, by the contestant's name."""

INT4 = {"numba int4": "numba", "numpy int4": "numpy"}

MATRIX = (8192, 2048)
MATRICES = 12
"""So many of them, of 9.4 MB each, that few processors' caches hold what was read last time."""


def least(runs: Runs, repeat: int) -> dict[str, tuple[float, float]]:
    """The least seconds of prefill and of decode of each, in turns, after one run that warms up."""
    found = {name: run() for name, run in runs.items()}
    for _ in range(repeat):
        for name, run in runs.items():
            found[name] = tuple(map(min, found[name], run()))  # type: ignore[assignment]
    return found


def prompts_of(rows: int, tokens: int) -> list[list[int]]:
    """Random prompts."""
    draw = np.random.default_rng(1)
    return [[2, *draw.integers(4, 50000, tokens - 1).tolist()] for _ in range(rows)]


def oracle_of(size: str) -> Any:
    """A model of `transformers` with random weights; made empty first, since its own drawing takes a minute."""
    spec = published(size)
    config = transformers.OPTConfig(
        hidden_size=spec.width,
        ffn_dim=spec.ffn_width,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        word_embed_proj_dim=spec.width,
    )
    with torch.device("meta"):
        model = transformers.OPTForCausalLM(config)
    model.to_empty(device="cpu").eval()
    model.tie_weights()
    with torch.no_grad():
        for values in model.parameters():
            values.uniform_(-0.03, 0.03)
    return model


def run_oracle(model: Any, prompts: list[list[int]], new_tokens: int) -> tuple[float, float]:
    """Greedy with a cache."""
    with torch.inference_mode():
        start = time.perf_counter()
        out = model(torch.tensor(prompts), use_cache=True, logits_to_keep=1)
        chosen = out.logits[:, -1].argmax(-1, keepdim=True)
        prefill_end = time.perf_counter()
        for _ in range(new_tokens - 1):
            out = model(chosen, past_key_values=out.past_key_values, use_cache=True)
            chosen = out.logits[:, -1].argmax(-1, keepdim=True)
        return prefill_end - start, time.perf_counter() - prefill_end


def engine_runs(engines: dict[str, Any], prompts: list[list[int]], new_tokens: int) -> Runs:
    """The same on engines of flexref."""

    def run(engine: Any) -> tuple[float, float]:
        stats = engine.generate(prompts, Request(new_tokens, ignore_eos=True)).stats
        return stats.prefill_s, stats.decode_s

    return {name: lambda engine=engine: run(engine) for name, engine in engines.items()}  # type: ignore[misc]


def opened(size: str, rows: int) -> dict[str, Any]:
    """Engines of both ports for the same 4-bit weights."""
    file = random_file(published(size), scheme="int4")
    return {name: flexref.load(file, backend=port, policy=Policy(rows_per_group=rows)) for name, port in INT4.items()}


def told(name: str, found: dict[str, tuple[float, float]], rows: int, prompt: int, new: int) -> Iterator[str]:
    """A line for each contestant."""
    for contestant, (prefill_s, decode_s) in found.items():
        step_s = decode_s / (new - 1)
        yield (
            f"{name}, {rows} rows, {contestant}: prefill of {prompt} tokens {prefill_s:.3f} s, "
            f"{1000 * step_s:.1f} ms a step, {rows * new / (prefill_s + decode_s):.1f} tokens/s"
        )


def ratio(found: dict[str, tuple[float, float]], other: str, part: int) -> float:
    """How many times as fast as another the numba port is, in prefill (0) or decode (1)."""
    return found[other][part] / found["numba int4"][part]


def large_model(repeat: int) -> Iterator[str]:
    """OPT-1.3B-sized, 4 bits, beside numpy's port, and at one row beside `transformers` in float32."""
    for rows, prompt, new in ((1, 128, 9), (16, 16, 5)):
        engines, wanted = opened("1.3b", rows), prompts_of(rows, prompt)
        runs = engine_runs(engines, wanted, new)
        if rows == 1:
            model = oracle_of("1.3b")
            runs["transformers float32"] = lambda model=model, wanted=wanted, new=new: run_oracle(model, wanted, new)  # type: ignore[misc]
        found = least(runs, repeat)
        runs.clear()
        model = None
        for engine in engines.values():
            engine.close()
        yield from told("OPT-1.3B", found, rows, prompt, new)
        of_numpy = [ratio(found, "numpy int4", part) for part in range(2)]
        yield f"OPT-1.3B, {rows} rows: {of_numpy[0]:.2f} / {of_numpy[1]:.2f} times numpy's speed, prefill / decode"
        if rows == 1:
            of_oracle = [ratio(found, "transformers float32", part) for part in range(2)]
            yield f"OPT-1.3B, 1 row: {of_oracle[0]:.2f} / {of_oracle[1]:.2f} times that of transformers float32"


def products_of_codes(repeat: int) -> Iterator[str]:
    """4-bit products at one row as a share of what memory gives."""
    from flexref_numba import NumbaBackend

    port, draw = NumbaBackend(), np.random.default_rng(0)
    outputs, inputs = MATRIX
    codes = [draw.integers(0, 256, (outputs, inputs // 2), np.uint8) for _ in range(MATRICES)]
    pairs = np.full((2, outputs, inputs // 64), 0.01, np.float16)
    matrices = [QuantizedMatrix(each, pairs[0].copy(), pairs[1].copy(), inputs, 64) for each in codes]
    coded_bytes = sum(each.codes.nbytes + each.scale.nbytes + each.zero.nbytes for each in matrices)
    numbers = [draw.standard_normal(MATRIX, np.float32) for _ in range(MATRICES // 4)]
    x, out = np.ones((1, inputs), np.float32), np.empty((1, outputs), np.float32)

    def seconds(weights: list[Any]) -> float:
        """Of the fastest one: a moment without other work is enough."""
        found = []
        for matrix in weights:
            start = time.perf_counter()
            port.linear(x, matrix, None, out=out)
            found.append(time.perf_counter() - start)
        return min(found)

    turns = [(seconds(matrices), seconds(numbers)) for _ in range(10 * repeat)]
    port.close()
    coded_s, wide_s = (min(column) for column in zip(*turns, strict=True))
    of_codes, memory = coded_bytes / len(matrices) / coded_s / 1e9, numbers[0].nbytes / wide_s / 1e9
    yield (
        f"4-bit products at 1 row: {of_codes:.1f} GB/s of codes and scales; float32 is read at {memory:.1f} GB/s: "
        f"{of_codes / memory:.0%}"
    )


def small_model(repeat: int) -> Iterator[str]:
    """OPT-125m-sized, 32 rows, beside `transformers` and CTranslate2 in int8, where that is installed."""
    rows, prompt, new = 32, 64, 32
    wanted, model = prompts_of(rows, prompt), oracle_of("125m")
    engines = opened("125m", rows)
    runs = engine_runs({"numba int4": engines["numba int4"]}, wanted, new)
    runs["transformers float32"] = lambda: run_oracle(model, wanted, new)
    with tempfile.TemporaryDirectory() as folder:
        peer = translated(model, Path(folder), wanted, new)
        if peer is None:
            yield "CTranslate2 is not installed (pip install ctranslate2): it is left out"
        else:
            runs["ctranslate2 int8"] = peer
        found = least(runs, repeat)
    for engine in engines.values():
        engine.close()
    for name, times in found.items():
        speed = rows * new / sum(times)
        yield f"OPT-125m, {rows} rows, prompt {prompt}, {new} new tokens, {name}: {speed:.0f} tokens/s"


def translated(
    model: Any, folder: Path, prompts: Sequence[Sequence[int]], new: int
) -> Callable[[], tuple[float, float]] | None:
    """The run of CTranslate2 in int8 of the same numbers; None if it is not installed. Its prefill is in its decode."""
    try:
        import ctranslate2
        from ctranslate2.converters.transformers import OPTLoader
    except ImportError:
        return None
    vocabulary = [str(number) for number in range(model.config.vocab_size)]
    spec = OPTLoader().get_model_spec(model)
    spec.register_vocabulary(vocabulary)
    spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = "2", "2", "3"
    spec.validate()
    spec.optimize(quantization="int8")
    (folder / "int8").mkdir()
    spec.save(str(folder / "int8"))
    threads = max(product_threads())
    peer = ctranslate2.Generator(str(folder / "int8"), compute_type="int8", intra_threads=threads)
    tokens = [[str(number) for number in prompt] for prompt in prompts]

    def run() -> tuple[float, float]:
        start = time.perf_counter()
        found = peer.generate_batch(
            tokens,
            max_length=new,
            min_length=new,
            sampling_topk=1,
            include_prompt_in_result=False,
            max_batch_size=len(tokens),
        )
        seconds = time.perf_counter() - start
        assert all(len(each.sequences[0]) == new for each in found)
        return 0.0, seconds

    return run


def show_figures(repeat: int) -> None:
    """Print each figure as soon as it is there."""
    for part in (products_of_codes, small_model, large_model):
        for line in part(repeat):
            click.echo(line)
