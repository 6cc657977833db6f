"""`flexref bench` checks the tokens of its own runs: a run whose tokens are wrong gives no figure anywhere."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flexref_numpy import NumpyBackend

from flexref.backend import registry
from flexref.bench.history import read_history
from flexref.check import smoke
from flexref.cli.main import COMMANDS, command_group, run
from flexref.engine.engine import Engine
from flexref.errors import BaselineError

SMALL = ("--model", "tiny", "--prompt-len", "12", "--gen-len", "4", "--rows", "4", "--rows-per-group", "2")


def bench(*arguments: str) -> int:
    return run(command_group(COMMANDS), ["bench", *arguments])


class WrongWhenTimed(NumpyBackend):
    """Gives other tokens than the greatest, but for the tiny model with which a port is checked first."""

    def sample(self, logits: Any, *how: Any) -> Any:
        chosen = super().sample(logits, *how)
        return chosen if logits.shape[1] == smoke.SPEC.vocabulary else (chosen + 1) % logits.shape[1]


class Fickle(NumpyBackend):
    """Chooses otherwise from its 20th choice on."""

    choices = 0

    def sample(self, logits: Any, *how: Any) -> Any:
        chosen = super().sample(logits, *how)
        self.choices += logits.shape[1] != smoke.SPEC.vocabulary
        return chosen if self.choices < 20 else np.zeros_like(chosen)


@pytest.mark.parametrize(
    ("port", "repeat", "complaint"),
    [
        (WrongWhenTimed, "1", "new token 0: the run gave token"),
        (Fickle, "3", "the same job on the same port must give"),
    ],
)
def test_a_run_with_wrong_tokens_is_no_result(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    port: Any,
    repeat: str,
    complaint: str,
) -> None:
    create = registry.create  # a prediction asks for the dry port, where an earlier test has measured this machine
    monkeypatch.setattr(registry, "create", lambda name, **how: create(name, **how) if how else port())
    history = str(tmp_path / "runs.sqlite")
    assert bench(*SMALL, "--repeat", repeat, "--json", "--history", history, "--label", "wrong") == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert complaint in shown.err
    assert "no result" in shown.err or "none of its runs is a result" in shown.err
    with pytest.raises(BaselineError, match="no benchmark has the label"):
        read_history(history, "wrong")


def test_a_run_that_leaves_out_a_token_is_no_result(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = Engine.generate

    def shorter(*arguments: Any, **named: Any) -> Any:
        generation = generate(*arguments, **named)
        if [len(output.token_ids) for output in generation.outputs] == [4] * 4:  # a timed run
            del generation.outputs[-1].token_ids[-1]
        return generation

    monkeypatch.setattr(Engine, "generate", shorter)
    assert bench(*SMALL, "--json") == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[-1] == "flexref: run 1, row 3: gave 3 new tokens, needed 4: it is no result"


def test_what_was_checked_is_said_and_what_was_not_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(*SMALL, "--check-rows", "2", "--seed", "3", "--json", "--verbose") == 0
    shown = capsys.readouterr()
    assert re.search(r"checking the tokens of the runs: 2 rows, \S+ TFLOP, about \S+ s", shown.err)
    found = json.loads(shown.out)["tokens_checked"]
    assert (len(found["rows"]), found["tokens"], found["seed"]) == (2, 8, 3)
    assert found["worst_share"] <= 1 <= found["possible_tokens"]
    assert bench(*SMALL) == 0
    assert "checked afterwards: 16 tokens of rows 0, 1, 2, 3" in " ".join(capsys.readouterr().out.split())
    assert bench(*SMALL, "--check-rows", "0") == 0
    assert "checked afterwards: NO token of the runs" in capsys.readouterr().out
