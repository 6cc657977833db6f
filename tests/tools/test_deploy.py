"""The files under tools/deploy are what Slurm and Kubernetes read; their commands, run as they stand, divide a job."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flexref.batch_job.shard_choice import choose_shard
from flexref.cli.main import COMMANDS, command_group, run

FOLDER = Path(__file__).parents[2] / "tools" / "deploy"
SLURM, KUBERNETES = FOLDER / "slurm_array.sbatch", FOLDER / "kubernetes_indexed_job.yaml"

STUBS = {
    "flexref": f'exec {sys.executable} -m flexref "$@" --backend numpy --chunk-lines 2',
    "srun": 'shift; exec "$@"',
    "scontrol": 'echo "$@" >> "$CALLS"',
}
"""What a cluster has, for a machine that is none; `flexref` divides a small job, too, and needs no device."""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an input of six lines, and a PATH with what stands for a cluster."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in STUBS.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    lines = [json.dumps({"id": number, "prompt": "The king", "max_new_tokens": number}) for number in range(1, 7)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    return tmp_path


def merged(job: Path, count: int) -> list[int]:
    """The ids of the lines of the joined outputs, in order."""
    outputs = sorted(str(path) for path in job.glob(f"out.*-of-{count:04d}.jsonl"))
    out, err = str(job / "merged.jsonl"), str(job / "merged-errors.jsonl")
    assert run(command_group(COMMANDS), ["batch", "merge", *outputs, "-o", out, "--errors", err]) == 0
    return [json.loads(line)["custom_id"] for line in Path(out).read_text().splitlines()]


def ran(command: list[str], **variables: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)


def test_the_tasks_of_the_slurm_array_do_the_whole_job(job: Path) -> None:
    directives = [line for line in SLURM.read_text().splitlines() if line.startswith("#SBATCH ")]
    assert "#SBATCH --array=0-15" in directives
    names = {"MODEL": "demo", "INPUT": "in.jsonl", "OUTPUT": "out.jsonl", "ERRORS": "errors.jsonl"}
    paths = {name: value if value == "demo" else str(job / value) for name, value in names.items()}
    for task in ("0", "1"):
        done = ran(["bash", str(SLURM)], SLURM_ARRAY_TASK_ID=task, SHARDS="2", BACKEND="numpy", **paths)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["ending"] == "done"
    assert not (job / "calls").exists()  # nothing was paused, and put into the queue again
    assert merged(job, 2) == [1, 2, 3, 4, 5, 6]


def test_what_the_slurm_file_says_of_its_shards_is_what_its_array_has() -> None:
    text = SLURM.read_text()
    assert "--array=0-15" in text
    assert 'SHARDS="${SHARDS:-16}"' in text


def kubernetes() -> dict[str, Any]:
    spec: dict[str, Any] = pytest.importorskip("yaml").safe_load(KUBERNETES.read_text())["spec"]
    return spec


def test_the_pods_of_the_indexed_job_do_the_whole_job(job: Path) -> None:
    (container,) = kubernetes()["template"]["spec"]["containers"]
    script = container["args"][0].replace("/tmp/ending.json", "/job/ending.json").replace("/job/model.h5", "demo")
    script = script.replace("/job/", f"{job}/")
    for index in ("0", "1"):
        variables = {"JOB_COMPLETION_INDEX": index, "JOB_COMPLETIONS": "2"}
        done = ran([*container["command"], script], **variables)
        assert done.returncode == 0, done.stderr
        assert f"shard {index} of 2" in done.stderr
    assert merged(job, 2) == [1, 2, 3, 4, 5, 6]


def test_the_indexed_job_says_how_many_pods_there_are_and_ends_them_in_order() -> None:
    spec = kubernetes()
    pod = spec["template"]["spec"]
    variables = {entry["name"]: entry["value"] for entry in pod["containers"][0]["env"]}
    assert spec["completionMode"] == "Indexed"
    assert variables == {"JOB_COMPLETIONS": str(spec["completions"])}
    assert choose_shard(None, {**variables, "JOB_COMPLETION_INDEX": "15"}).shard.count == 16
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] >= 60
    assert spec["backoffLimitPerIndex"] >= 1
    claims = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == claims


PAUSES = """#!/bin/sh
trap 'kill "$sleeper"; echo "{\\"ending\\": \\"paused\\"}"; exit 0' TERM
sleep 60 & sleeper=$!
touch "$CALLS"
wait "$sleeper"
"""


def test_a_pod_that_is_paused_fails_so_that_it_is_replaced(job: Path) -> None:
    (container,) = kubernetes()["template"]["spec"]["containers"]
    (job / "bin" / "flexref").write_text(PAUSES)
    script = container["args"][0].replace("/tmp/", f"{job}/")
    with subprocess.Popen([*container["command"], script], stdout=subprocess.PIPE) as pod:
        while not (job / "calls").exists():
            assert pod.poll() is None
        pod.terminate()
        assert pod.stdout is not None
        assert json.loads(pod.stdout.read()) == {"ending": "paused"}
        assert pod.wait() == 1


def test_a_task_that_is_paused_is_put_into_the_queue_again(job: Path) -> None:
    (job / "bin" / "flexref").write_text('#!/bin/sh\necho \'{"ending": "paused"}\'\n')
    done = ran(["bash", str(SLURM)], SLURM_ARRAY_TASK_ID="0", SLURM_JOB_ID="77")
    assert done.returncode == 0, done.stderr
    assert (job / "calls").read_text() == "requeue 77\n"
