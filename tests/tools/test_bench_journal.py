"""`tools/bench_journal` measures both journals, and its figures say what it says they do."""

import re
import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).parents[2] / "tools" / "bench_journal"


def test_both_journals_are_measured_and_damage_is_refused_by_ours_alone(tmp_path: Path) -> None:
    options = ["--folder", str(tmp_path), "--lines", "400", "--repeat", "1"]
    done = subprocess.run([sys.executable, str(TOOL), *options], capture_output=True, text=True, check=True)
    assert re.findall(r"(?m)^(journal|sqlite) .* us of CPU a line, .* ms a commit, .*", done.stdout) == [
        "journal",
        "sqlite",
    ]
    assert "out.journal: of 300 bits turned over in what was synced: {'refused': 300}" in done.stdout
    assert "'read wrongly'" in done.stdout
    assert not list(tmp_path.iterdir())
