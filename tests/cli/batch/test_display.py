"""What is shown while a job starts ends before those who watch it show anything, and never comes back."""

from pathlib import Path

import pytest

from flexref.cli.main import COMMANDS, command_group, run
from flexref.cli.show import progress
from flexref.cli.show.displays import Nothing
from flexref.cli.show.stage import WorkStage


def test_the_display_of_the_start_does_not_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    class Shown(Nothing):
        def begin(self, stage: WorkStage) -> None:
            told.append(stage.what)

        def end(self) -> None:
            told.append("end")

    monkeypatch.setattr(progress, "PlainLines", Shown)
    (tmp_path / "in.txt").write_text("The king\n")
    arguments = [str(tmp_path / "in.txt"), "-o", str(tmp_path / "out.jsonl"), "--model", "demo", "--max-tokens", "2"]
    assert run(command_group(COMMANDS), ["batch", *arguments]) == 0
    assert told[0] == "choosing a policy"
    assert set(told[told.index("end") :]) == {"end"}
