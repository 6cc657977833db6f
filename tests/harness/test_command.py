"""`flexref lm-eval` as its users call it: tasks of three kinds from files, offline, with the figures of flexref."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flexref
from flexref.cli.lm_eval import with_model
from flexref.engine.request import Request
from flexref.quality.multiple_choice import judge
from flexref.quality.perplexity import perplexity, sample_text
from flexref.quality.questions import read_questions

HELD = Path(__file__).parents[1] / "data" / "heldout"

PLACED = "rows_per_group=8,groups=1,device_mem_gib=0.2,host_mem_gib=0.2"

ENDINGS = [
    {"ctx": "The lady sat down to her", "endings": ["dinner.", "mountain.", "seven.", "window glass."], "label": 0},
    {"ctx": "And God said unto", "endings": ["postgres.", "Moses.", "table rows.", "the file name."], "label": 1},
    {"ctx": "The ship was lost in the", "endings": ["sea.", "grammar.", "verb.", "number."], "label": 0},
    {"ctx": "He opened the door and went", "endings": ["blue.", "cat.", "into the room.", "seven."], "label": 2},
]


def task(folder: Path, name: str, rows: list[dict[str, Any]], **fields: Any) -> None:
    """A task of the harness over rows in a file; JSON is YAML, too."""
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        **fields,
    }
    (folder / f"{name}.yaml").write_text(json.dumps(config))


WITHOUT_ITS_OWN_TASKS = """
from functools import partialmethod
from lm_eval.tasks import TaskManager
TaskManager.__init__ = partialmethod(TaskManager.__init__, include_defaults=False)
from flexref.__main__ import main
"""
"""The command's harness does not read the thousands of tasks that it brings: that takes seven seconds."""

ONE_AFTER_THE_OTHER = (
    WITHOUT_ITS_OWN_TASKS
    + """
import json, sys
codes = []
for call in json.loads(sys.argv[1]):
    sys.argv[1:] = call
    try:
        main()
    except SystemExit as leave:
        codes.append(leave.code)
    print("the end of a call", file=sys.stderr, flush=True)
sys.stdout.write("\\n" + json.dumps(codes))
"""
)
"""Several calls of the command in one process, which loads the harness once."""


def lm_eval(folder: Path, *arguments: str, own_tasks: bool = False) -> subprocess.CompletedProcess[str]:
    program = ("-m", "flexref") if own_tasks else ("-c", f"{WITHOUT_ITS_OWN_TASKS}main()")
    return started(folder, *program, "lm-eval", *arguments)


def started(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A process of Python whose harness fetches nothing."""
    offline = {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    command = [sys.executable, *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ | offline, timeout=150)


def complaints(folder: Path, *calls: tuple[str, ...]) -> list[list[str]]:
    """What the command writes to stderr, in lines, for each call of several in one process; each must exit with 1."""
    run = started(folder, "-c", ONE_AFTER_THE_OTHER, json.dumps([["lm-eval", *call] for call in calls]))
    assert run.returncode == 0, run.stderr[-3000:]
    assert json.loads(run.stdout.splitlines()[-1]) == [1] * len(calls)
    said = run.stderr.split("the end of a call\n")[:-1]
    return [text.splitlines() for text in said]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one run over three tasks reports."""
    folder = tmp_path_factory.mktemp("tasks")
    task(
        folder,
        "endings",
        ENDINGS,
        output_type="multiple_choice",
        doc_to_text="{{ctx}}",
        doc_to_choice="endings",
        doc_to_target="label",
        metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}],
    )
    task(
        folder,
        "text",
        [{"page": piece} for piece in pieces()],
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{page}}",
        metric_list=[{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    )
    task(
        folder,
        "onward",
        [{"prompt": prompt, "text": text} for prompt, text in continuations().items()],
        output_type="generate_until",
        doc_to_text="{{prompt}}",
        doc_to_target="{{text}}",
        generation_kwargs={"until": ["."], "max_gen_toks": 12, "do_sample": False},
        metric_list=[{"metric": "exact_match"}],
    )
    arguments = ["--model_args", f"path=demo,{PLACED}", "--tasks", "endings,text,onward"]
    run = lm_eval(
        folder, *arguments, "--include_path", str(folder), "--output_path", str(folder / "out"), own_tasks=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    (path,) = (folder / "out").rglob("results_*.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def pieces() -> list[str]:
    """Two texts without white space around them."""
    text = (HELD / "story.txt").read_text()
    return [" ".join(text[at : at + 1200].split()) for at in (0, 5000)]


def continuations() -> dict[str, str]:
    """Two prompts with what the engine makes of them, and one with what it does not."""
    prompts = ["The king said", "In the beginning"]
    with flexref.load("demo", keep={"rows_per_group": 4, "groups_per_block": 1}) as engine:
        outputs = engine.generate(prompts, Request(12, stops=(".",))).outputs
    return {prompt: output.text or "" for prompt, output in zip(prompts, outputs, strict=True)} | {
        "It was": "never said"
    }


def test_choices_are_judged_as_by_flexref_eval(results: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "hellaswag.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ENDINGS))
    with flexref.load("demo", keep={"rows_per_group": 4, "groups_per_block": 1}) as engine:
        ours = judge(engine, read_questions(path)).to_json()
    assert results["results"]["endings"]["acc,none"] == ours["accuracy"]
    assert ours["accuracy"] > 0
    assert results["results"]["endings"]["acc_norm,none"] == ours["normalized_accuracy"]


def test_a_text_has_the_perplexity_of_flexref_eval(results: dict[str, Any]) -> None:
    nats = words = nbytes = 0.0
    with flexref.load("demo", keep={"rows_per_group": 4, "groups_per_block": 1}) as engine:
        for piece in pieces():
            found = perplexity(engine, sample_text(engine, piece, None, None))
            nats, words, nbytes = nats + found.nats, words + found.sample.words, nbytes + found.sample.nbytes
    figures = results["results"]["text"]
    np.testing.assert_allclose(figures["word_perplexity,none"], np.exp(nats / words), rtol=1e-4)
    np.testing.assert_allclose(figures["bits_per_byte,none"], nats / np.log(2) / nbytes, rtol=1e-5)


def test_continuations_are_the_engines(results: dict[str, Any]) -> None:
    np.testing.assert_allclose(results["results"]["onward"]["exact_match,none"], 2 / 3)


def test_the_report_names_the_model(results: dict[str, Any]) -> None:
    config = results["config"]
    assert config["model"] == "flexref"
    assert config["model_args"]["path"] == "demo"
    assert (config["model_scheme"], config["backend"]) == ("none", "numpy")
    assert config["flexref_version"] == flexref.__version__


def test_what_is_wrong_is_one_line_with_its_traceback_if_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = {"output_type": "loglikelihood_rolling", "doc_to_text": ""}
    task(tmp_path, "t", [{"page": "It was."}], **page, doc_to_target="page")
    task(tmp_path, "wrong", [{"page": "It was."}], **page, doc_to_target="{{page | nothing}}")
    options = ("--include_path", str(tmp_path), "--tasks")
    in_task = ("--model_args", "path=demo", *options, "wrong")
    wrong = {
        ("--model_args", "path=nowhere.h5", *options, "t"): "flexref: no such weight file: nowhere.h5",
        ("--model_args", "path=demo,pretrained=x", *options, "t"): (
            "flexref: unknown model argument pretrained; known: path, backend"
        ),
        in_task: "flexref: lm_eval: TemplateAssertionError: No filter named 'nothing'",
    }
    for lines, message in zip(complaints(tmp_path, *wrong), wrong.values(), strict=True):
        assert lines[-1].startswith(message), lines[-15:]
        assert not any("Traceback" in line for line in lines)
    monkeypatch.setenv("LMEVAL_LOG_LEVEL", "DEBUG")
    asked = lm_eval(tmp_path, *in_task)
    assert asked.returncode == 1
    assert "Traceback" in asked.stderr


@pytest.mark.parametrize(
    ("given", "added"),
    [
        (("--tasks", "t"), True),
        (("run", "--tasks", "t"), True),
        (("--model", "dummy", "--tasks", "t"), False),
        (("-M", "dummy"), False),
        (("--model=dummy",), False),
        (("--config", "run.yaml"), False),
        (("ls", "tasks"), False),
        (("run", "--help"), False),
        ((), False),
    ],
)
def test_the_model_is_ours_unless_another_is_named(given: tuple[str, ...], added: bool) -> None:
    assert with_model(given) == [*given, *(["--model", "flexref"] if added else [])]
