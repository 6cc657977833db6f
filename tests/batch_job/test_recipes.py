"""The recipes of flexref/batch_job/README.md run as they are printed, in a shell."""

import os
import re
import subprocess
import sys
from pathlib import Path

import flexref

README = Path(flexref.__file__).parent / "batch_job" / "README.md"


def test_the_recipes_run_as_they_stand_one_after_the_other(tmp_path: Path) -> None:
    section = README.read_text(encoding="utf-8").split("\n## Recipes\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 4
    (tmp_path / "flexref").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m flexref "$@"\n')
    (tmp_path / "flexref").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        ["bash", "-ec", "\n".join(blocks)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"code":"no_chat_template"') == 2  # in the body and as the error
    assert done.stdout.splitlines()[-2:] == ["2", "chapters.html: done, 60 of 60 lines done, 0 failed"]
    answers = (tmp_path / "answers.jsonl").read_text().splitlines()
    assert [line.split('"custom_id":')[1].split(",")[0] for line in answers] == ['"king"', '"both"']
    assert (tmp_path / "chapters.jsonl").read_bytes().count(b"\n") == 60
