"""Trains the network on packed ids against a clock, keeping the weights that were best on held-out text."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional

from builtin import packed as packing
from builtin.network import Decoder, Shape


@dataclass(frozen=True)
class Settings:
    """How to train; the run ends at whichever of `minutes` and `epochs` comes first."""

    minutes: float = 6.0
    epochs: float = 40.0
    rows: int = 64
    rate: float = 2e-3
    warmup: float = 0.02
    weight_decay: float = 0.1
    dropout: float = 0.1
    evaluations: int = 30
    held_runs: int = 0  # runs of each held-out text that a check reads; 0 is all of them
    seed: int = 1
    compiled: bool = True


@dataclass
class Log:
    """What happened, for the report: one row per evaluation and the figures of the best weights."""

    settings: dict[str, Any]
    device: str
    curve: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=dict)
    best_float16: dict[str, float] = field(default_factory=dict)
    tokens: int = 0
    steps: int = 0
    epochs: float = 0.0
    seconds: float = 0.0


def batches(packed: packing.Packed, settings: Settings, length: int) -> Iterator[tuple[torch.Tensor, float]]:
    """Endless batches of ids (rows, length + 1), each with the epochs done before it."""
    random = np.random.default_rng(settings.seed)
    epoch = 0
    while True:
        stream, begins = packing.epoch_stream(packed, random)
        starts = packing.windows(stream, begins, length, random)
        ids = torch.from_numpy(stream.astype(np.int16))
        for at in range(0, len(starts) - settings.rows + 1, settings.rows):
            chosen = torch.from_numpy(starts[at : at + settings.rows])
            window = ids[chosen[:, None] + torch.arange(length + 1)[None, :]]
            yield window, epoch + at / len(starts)
        epoch += 1


@torch.no_grad()
def held_loss(
    network: Decoder, packed: packing.Packed, length: int, runs: int, device: torch.device
) -> dict[str, float]:
    """Mean negative log-likelihood per token, in nats, of every held-out text (its first `runs` runs), in float32."""
    network.eval()
    losses = {}
    for name, ids in packed.held.items():
        total, count = 0.0, 0
        cut = packing.held_windows(ids, length + 1)[: runs or None]
        for at in range(0, len(cut), 32):
            group = cut[at : at + 32]
            window = torch.full((len(group), max(map(len, group))), -1, dtype=torch.long)
            for row, piece in enumerate(group):
                window[row, : len(piece)] = torch.from_numpy(piece.astype(np.int64))
            window = window.to(device)
            logits = network(window[:, :-1].clamp_min(0))
            target = window[:, 1:].flatten()
            total += float(functional.cross_entropy(logits.flatten(0, 1), target, ignore_index=-1, reduction="sum"))
            count += int((window[:, 1:] >= 0).sum())
        losses[name] = total / count
    network.train()
    return losses


def mean_loss(losses: dict[str, float]) -> float:
    """The figure that chooses the weights: every held-out text counts the same, however long."""
    return sum(losses.values()) / len(losses)


def rate_at(progress: float, settings: Settings) -> float:
    """Linear warm-up, then a cosine to nothing; progress in [0, 1]."""
    if progress < settings.warmup:
        return settings.rate * (progress / settings.warmup + 0.01)
    falling = min(1.0, (progress - settings.warmup) / (1 - settings.warmup))
    return settings.rate * 0.5 * (1 + math.cos(math.pi * falling))


def _optimizer(network: Decoder, settings: Settings, device: torch.device) -> torch.optim.AdamW:
    matrices = [parameter for parameter in network.parameters() if parameter.dim() == 2]
    vectors = [parameter for parameter in network.parameters() if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.rate, betas=(0.9, 0.95), fused=device.type == "cuda")


class Run:
    """One training: its network, optimizer, clock and log."""

    def __init__(self, packed: packing.Packed, shape: Shape, settings: Settings, device: torch.device) -> None:
        torch.manual_seed(settings.seed)
        torch.set_float32_matmul_precision("high")
        self.packed, self.shape, self.settings, self.device = packed, shape, settings, device
        self.network = Decoder(shape, settings.dropout).to(device)
        self.optimizer = _optimizer(self.network, settings, device)
        self.best: dict[str, torch.Tensor] = {}
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        self.log = Log(asdict(settings) | asdict(shape), name)

    def _loss(self, window: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device.type, torch.bfloat16):
            logits = self.network(window[:, :-1])
        return functional.cross_entropy(logits.float().flatten(0, 1), window[:, 1:].flatten())

    def _held_loss(self) -> dict[str, float]:
        return held_loss(self.network, self.packed, self.shape.positions, self.settings.held_runs, self.device)

    def _evaluate(self, train_loss: float, epochs: float, seconds: float) -> None:
        losses = self._held_loss()
        mean = mean_loss(losses)
        self.log.curve.append({"seconds": seconds, "epochs": epochs, "train": train_loss, "mean": mean} | losses)
        if not self.best or mean < mean_loss(self.log.best):
            self.log.best = losses
            self.best = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        shown = " ".join(f"{name}={loss:.3f}" for name, loss in losses.items())
        print(f"{seconds:6.1f} s  epoch {epochs:6.2f}  train {train_loss:.4f}  held {mean:.4f}  {shown}", flush=True)

    def train(self) -> None:
        """Trains to the end of the clock or of the epochs; the clock starts after the first step (compilation)."""
        step_loss = torch.compile(self._loss) if self.settings.compiled else self._loss
        begun, last = 0.0, 0.0
        losses: list[torch.Tensor] = []
        for window, epochs in batches(self.packed, self.settings, self.shape.positions):
            seconds = time.monotonic() - begun if begun else 0.0
            progress = max(seconds / (60 * self.settings.minutes), epochs / self.settings.epochs)
            if progress >= 1.0:
                break
            for group in self.optimizer.param_groups:
                group["lr"] = rate_at(progress, self.settings)
            loss = step_loss(window.to(self.device, torch.long, non_blocking=True))
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self.optimizer.step()
            losses.append(loss.detach())
            self.log.steps += 1
            self.log.tokens += window.shape[0] * (window.shape[1] - 1)
            if not begun:
                loss.item()  # waits for the device
                begun = time.monotonic()
            if progress - last >= 1 / self.settings.evaluations:
                self._evaluate(float(torch.stack(losses).mean()), epochs, time.monotonic() - begun)
                last, losses = progress, []
        self.log.seconds, self.log.epochs = time.monotonic() - begun, epochs
        self._evaluate(float(torch.stack(losses).mean()) if losses else math.nan, epochs, self.log.seconds)

    def save(self, folder: Path) -> None:
        """The best weights in float16 as an ordinary folder, their held-out losses in both precisions, and the log."""
        folder.mkdir(parents=True, exist_ok=True)
        self.network.load_state_dict(self.best)
        state = self.network.state(torch.float16)
        if not all(bool(torch.isfinite(value).all()) for value in state.values()):
            raise RuntimeError("a weight does not fit float16")
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        self.network.load_state_dict({name: value.to(torch.float16).float() for name, value in self.best.items()})
        self.log.best_float16 = self._held_loss()
        config = self.shape.config(self.settings.dropout)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        generation = {"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}
        (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
        (folder / "training_log.json").write_text(json.dumps(asdict(self.log), indent=1) + "\n")
