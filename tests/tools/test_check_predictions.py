"""`tools/check_predictions` holds simulations against what `flexref bench` reports, to the byte."""

import json
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest
from flexref_numpy.backend import SCRATCH_BYTES

from flexref.cli.main import COMMANDS, command_group, run
from flexref.errors import FlexrefError
from flexref.machine.machine import Machine
from flexref.machine.plain import plain_machine

TOOL = Path(__file__).parents[2] / "tools" / "check_predictions"


@pytest.fixture(scope="module")
def tool() -> Any:
    spec = spec_from_loader("check_predictions", SourceFileLoader("check_predictions", str(TOOL)))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def like_numpy() -> Machine:
    """A machine with the capabilities of the numpy port."""
    machine = plain_machine(asynchronous=False)
    port = machine.port
    facts = "numpy", "float32", port.asynchronous, port.overlaps_copies, port.attends_on_host, SCRATCH_BYTES, 0
    return machine.changed(port=type(port)(*facts))


def test_weights_that_load_before_the_runs_are_in_the_peak_of_the_simulation_alone(
    tool: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model whose weights take more of the host while they load than a job does."""
    lengths, report = tmp_path / "lengths.jsonl", tmp_path / "runs.jsonl"
    lengths.write_text('{"prompt_tokens": 70, "new_tokens": 2, "rows": 3, "shared_tokens": 64}')
    job = f"bench --model tiny --lengths {lengths} --rows-per-group 2 --percent 0 100 100 0 100 0 --repeat 1 --json -q"
    assert run(command_group(COMMANDS), job.split()) == 0
    found = capsys.readouterr().out
    report.write_text(found)
    tool.check(like_numpy(), (str(report),))
    assert "1 runs" in capsys.readouterr().out
    wrong = json.loads(found)
    wrong["peak_bytes"]["host"] += 4096
    report.write_text(json.dumps(wrong))
    with pytest.raises(FlexrefError, match="not those of the run"):
        tool.check(like_numpy(), (str(report),))
