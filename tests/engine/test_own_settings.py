"""Prompts with settings of their own: each row has what it asks for, and the rest of its job."""

import json
from pathlib import Path
from typing import Any

import pytest

from flexref.cli.main import COMMANDS, command_group, run
from flexref.engine.request import Request
from flexref.errors import PromptError
from flexref.loading import load
from flexref.policy import Policy
from flexref.sampling.settings import SamplingSettings
from flexref.text.prompts import Prompt

POLICY = Policy(rows_per_group=2, groups_per_block=2)


def test_every_row_has_what_it_asks_for_and_else_what_its_job_says() -> None:
    asked: list[dict[str, Any] | None] = [
        {"max_new_tokens": 3},
        None,
        {"max_new_tokens": 9, "temperature": 1.5, "seed": 5, "top_k": 50, "top_p": 0.9},
        {"stop": ["e"], "max_new_tokens": 20},
        {"max_new_tokens": 1},
    ]
    request = Request(6, SamplingSettings(temperature=0.8, seed=3), ignore_eos=True)
    with load("demo", policy=POLICY) as engine:
        prompts = [Prompt(text="The king", settings=settings) for settings in asked]
        together = engine.generate(prompts, request).outputs
        assert [len(output.token_ids) for output in together[:3]] == [3, 6, 9]
        assert len(together[4].token_ids) == 1
        assert together[3].finish_reason == "stop"
        assert "e" not in (together[3].text or "e")
        own = SamplingSettings(1.5, 50, 0.9, 5)
        for number, alone in ((0, Request(3, request.sampling, (), True)), (2, Request(9, own, (), True))):
            # A row draws from its number, too.
            filled = [Prompt(text="x", settings={"max_new_tokens": 1})] * number
            found = engine.generate([*filled, "The king"], alone).outputs[number]
            assert found.token_ids == together[number].token_ids


def test_what_cannot_be_served_is_told_with_the_prompts_number() -> None:
    with (
        load("demo", policy=POLICY) as engine,
        pytest.raises(PromptError, match=r"^prompt 2: top_p must be more than 0"),
    ):
        engine.generate(["one", Prompt(text="two", settings={"top_p": 0.0})], max_new_tokens=2)


def test_lines_of_a_file_have_their_own(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "The king", "max_new_tokens": 2}, {"prompt": "The king", "id": 7}, {"prompt": "The", "seed": 1}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    job = ["generate", "--model", "demo", "--input", str(path), "--max-new-tokens", "4", "--ignore-eos", "--json"]
    assert run(command_group(COMMANDS), job) == 0
    outputs = json.loads(capsys.readouterr().out)["outputs"]
    assert [len(output["token_ids"]) for output in outputs] == [2, 4, 4]
    path.write_text('{"prompt": "one"}\n{"prompt": "two", "top_k": 4294967296}\n')
    assert run(command_group(COMMANDS), job) == 1
    assert f"{path}, line 2: top_k must be an integer from 0 (off) to 2147483647" in capsys.readouterr().err
