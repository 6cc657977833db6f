"""Wrong calls of every command: exit code 2, one line or a usage, at once, and before anything large is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flexref.cli.main import COMMANDS, command_group, run

HEAVY = {"numpy", "scipy", "h5py", "tokenizers", "safetensors", "rich", "flexref_numpy", "flexref_cupy", "flexref_dry"}

GENERATE = ("generate", "--model", "demo", "--prompt", "x", "--max-new-tokens", "1")
EVAL = ("eval", "--model", "demo", "--text", "TEXT")
COMPARE = ("compare-models", "demo", "demo", "--text", "TEXT")
BENCH = ("bench", "--model", "tiny", "--prompt-len", "8", "--gen-len", "2", "--rows", "1")
CHECK = ("check", "--backend", "numpy", "--model", "demo", "--no-contract")
PLAN = ("plan", "--model", "tiny", "--machine", "t4-gcp", "--prompt-len", "8", "--gen-len", "8")
MACHINES = ("compare-machines", "--model", "tiny", "--machine", "t4-gcp")
BATCH = ("batch", "TEXT", "-o", "out.jsonl", "--model", "demo")
TOO_MUCH = ("--percent", "90", "20", "0", "100", "0", "100")

WRONG = (
    ("convert",),
    ("convert", "demo"),
    ("convert", "demo", ""),
    ("convert", "", "out.h5"),
    ("convert", "demo", "out.h5", "--group-size", "0"),
    ("convert", "demo", "out.h5", "--quantize", "int3"),
    ("convert", "demo", "out.h5", "--calibrate", ""),
    ("inspect",),
    ("inspect", ""),
    ("verify",),
    ("verify", ""),
    ("generate", "--prompt", "x"),
    ("generate", "--model", "demo"),
    ("generate", "--model", "", "--prompt", "x"),
    ("generate", "--model", "demo", "--prompt", ""),
    (*GENERATE, "--max-tokens", "3"),
    (*GENERATE, "--max-new-tokens", "0"),
    (*GENERATE, "--temperature", "-1"),
    (*GENERATE, "--top-k", "-1"),
    (*GENERATE, "--top-p", "2"),
    (*GENERATE, "--seed", "-1"),
    (*GENERATE, "--stop", ""),
    (*GENERATE, "--logprobs", "3"),
    (*GENERATE, "--input", ""),
    (*GENERATE, "--policy", ""),
    (*GENERATE, "--trace", ""),
    (*GENERATE, "--disk-dir", ""),
    (*GENERATE, "--machine", ""),
    (*GENERATE, "--machine", "nope"),
    (*GENERATE, "--backend", ""),
    (*GENERATE, "--backend", "nope"),
    (*GENERATE, "--device-mem-gib", "-1"),
    (*GENERATE, "--device-mem-gib", "nan"),
    (*GENERATE, "--device-mem-gib", "inf"),
    (*GENERATE, "--device-mem-gib", "1e9"),
    (*GENERATE, "--host-mem-gib", "0"),
    (*GENERATE, *TOO_MUCH),
    (*GENERATE, "--policy", "p.json", "--percent", *("0", "100", "0", "100", "0", "100")),
    (*GENERATE, "--rows-per-group", "0"),
    ("eval", "--model", "demo"),
    (*EVAL, "--choices", "c.jsonl"),
    (*EVAL, "--window", "0"),
    (*EVAL, "--window", "1"),
    (*EVAL, "--window", "3", "--stride", "5"),
    (*EVAL, "--text", ""),
    (*EVAL, "--backend", "dry"),
    (*EVAL, "--device-mem-gib", "-1"),
    (*EVAL, *TOO_MUCH),
    ("compare-models", "demo"),
    ("compare-models", "", "demo", "--text", "TEXT"),
    (*COMPARE, "--tokens", "t.txt"),
    (*COMPARE, "--window", "3", "--stride", "5"),
    (*COMPARE, "--backend", "dry"),
    (*COMPARE, "--host-mem-gib", "-1"),
    (*COMPARE, *TOO_MUCH),
    ("conformance",),
    ("conformance", "--backend", "nope"),
    ("conformance", "--backend", "numpy", "--clause", "nope"),
    ("conformance", "--backend", "numpy", "--operator", "nope"),
    ("conformance", "--backend", "numpy", "--time-limit-s", "0"),
    ("conformance", "--backend", "numpy", "--replay", "a.npz", "--operator", "linear"),
    ("conformance", "diff", "a.json"),
    ("conformance", "--backend", "numpy", "--operands", "a.npz", "--examples", "3"),
    ("new-backend",),
    ("new-backend", "mine"),
    ("new-backend", "My-Port", "there"),
    ("new-backend", "numpy", "there"),
    ("check",),
    ("check", "numpy", "--model", "demo"),
    ("check", "numpy", "numpy"),
    ("check", "numpy", "nope", "--model", "demo"),
    ("check", "numpy", "dry", "--model", "demo"),
    ("check", "numpy", "numpy", "--model", "demo", "-k", "gather"),
    ("check", "--backend", "nope", "--model", "demo"),
    ("check", "--backend", "dry", "--model", "demo", "--no-contract"),
    (*CHECK, "--prompt", ""),
    (*CHECK, "--examples", "0"),
    (*CHECK, "--device-mem-gib", "-1"),
    (*CHECK, *TOO_MUCH),
    ("bench",),
    ("bench", "--suite", "nope"),
    ("bench", "--model", "1.3c"),
    (*BENCH, "--machine", "nope"),
    (*BENCH, "--backend", "nope"),
    (*BENCH, "--backend", "dry"),
    (*BENCH, "--backend", "dry", "--percent", *("50", "50", "50", "50", "50", "50")),
    (*BENCH, "--device-mem-gib", "-1"),
    (*BENCH, "--policy", ""),
    (*BENCH, "--baseline", ""),
    (*BENCH, *TOO_MUCH),
    (*BENCH, "--repeat", "0"),
    ("plan", "--model", "1.3c", "--machine", "t4-gcp"),
    ("plan", "--model", "", "--machine", "t4-gcp"),
    ("plan", "--model", "tiny", "--machine", "nope"),
    ("plan", "--model", "tiny", "--machine", ""),
    ("plan", "--model", "tiny", "--backend", "dry"),
    (*PLAN, "--backend", "nope"),
    (*PLAN, "--device-mem-gib", "-1"),
    (*PLAN, "--watts", "100"),
    (*PLAN, "--max-latency-s", "0"),
    ("compare-machines",),
    ("compare-machines", "--model", "nope"),
    ("compare-machines", "--model", "tiny", "--machine", "nope"),
    (*MACHINES, "--price-per-hour", "t4-gcp=-1"),
    (*MACHINES, "--price-per-hour", "l4=1"),
    ("profile", "--backend", "nope"),
    ("profile", "--backend", "dry"),
    ("profile", "--disk-dir", ""),
    ("profile", "-o", ""),
    ("machines", "x"),
    ("machines", "list", "h100"),
    ("machines", "show"),
    ("machines", "show", "nope"),
    ("machines", "delete"),
    ("machines", "delete", "h100"),
    ("machines", "delete", "../nope"),
    ("machines", "--full"),
    ("machines", "measure", "h100"),
    ("machines", "measure", "--backend", "dry"),
    ("machines", "measure", "--disk-dir", ""),
    ("machines", "measure", "--backend", "nope"),
    ("schema", "nothing"),
    ("info", "x"),
    ("models", "x"),
    ("backends", "x"),
    ("logits", "--model", "demo", "-o", "out.npz"),
    ("logits", "--model", "demo", "-o", "out.npz", "--prompt", ""),
    ("logits", "--model", "demo", "-o", "", "--prompt", "x"),
    ("compare-logits",),
    ("compare-logits", "", "theirs.npz"),
    ("batch",),
    ("batch", "TEXT"),
    ("batch", "TEXT", "--model", "demo"),
    ("batch", "", "-o", "out.jsonl", "--model", "demo"),
    (*BATCH, "--shard", "3/3"),
    (*BATCH, "--shard", "0/0"),
    (*BATCH, "--shard", "first"),
    (*BATCH, "--temperature", "-1"),
    (*BATCH, "--top-p", "2"),
    (*BATCH, "--top-k", "-1"),
    (*BATCH, "--seed", "-1"),
    (*BATCH, "--max-tokens", "0"),
    (*BATCH, "--created", "-1"),
    (*BATCH, "--limits", "nope"),
    (*BATCH, "--backend", "nope"),
    (*BATCH, "--machine", "nope"),
    (*BATCH, "--device-mem-gib", "-1"),
    (*BATCH, "--stall-s", "-1"),
    (*BATCH, "--mirror", ""),
    (*BATCH, "--metrics-port", "99999"),
    (*BATCH, "--max-disk-writes-gib", "0"),
    (*BATCH, "--chunk-lines", "0"),
    (*BATCH, "--blas-threads", "2"),
    (*BATCH, "--scheduler", "nope"),
    (*BATCH, *TOO_MUCH),
    ("batch", "-", "-o", "-", "--model", "demo", "--dry-run"),
    ("batch", "merge"),
    ("batch", "merge", "-o", "out.jsonl"),
    ("report",),
    ("report", ""),
    ("report", "out.jsonl", "-o", ""),
    ("report", "out.jsonl", "--price-per-hour", "-1"),
    ("nothing",),
    ("--nothing",),
)

WITHOUT_WRONG_CALLS = {"lm-eval"}
"""What follows is the harness's own."""

UNKNOWN_NAMES = (
    "generate --model nope --prompt x",
    "generate --model demo --prompt x --machine nope",
    "generate --model demo --prompt x --backend nope",
    "generate --model demo --prompt x --percent 90 20 0 0 0 0",
    "eval --model nope --text x",
    "compare-models demo nope --text x",
    "bench --model 1.3c",
    "bench --model tiny --machine nope",
    "plan --model 1.3c --machine t4-gcp",
    "plan --model 1.3b --machine nope",
    "compare-machines --model 1.3c",
    "compare-machines --model 1.3b --machine nope",
    "check --backend nope --model demo",
    "check --backend numpy --model nope",
    "profile --backend nope",
    "machines show nope",
    "machines delete nope",
    "machines measure --backend nope",
    "inspect nope",
    "verify nope",
    "batch x.jsonl -o y.jsonl --model nope",
    "batch x.jsonl -o y.jsonl --model demo --backend nope",
    "batch x.jsonl -o y.jsonl --model demo --machine nope",
)

MOST_S = 0.4
"""Processor time of a call that names what is not there."""


def test_every_command_has_wrong_calls() -> None:
    assert {call[0] for call in WRONG if call} >= set(COMMANDS) - WITHOUT_WRONG_CALLS


@pytest.mark.parametrize("call", WRONG, ids=" ".join)
def test_a_wrong_call_exits_with_2_and_prints_nothing_on_stdout(
    call: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "TEXT").write_text("But soft, what light through yonder window breaks?")
    (tmp_path / "p.json").write_text("{}")
    assert run(command_group(COMMANDS), call) == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.startswith(("Usage: flexref", "flexref: "))
    assert "Traceback" not in said.err
    assert sorted(os.listdir(tmp_path)) == ["TEXT", "p.json"]


@pytest.mark.parametrize("call", UNKNOWN_NAMES)
def test_a_name_that_nobody_knows_is_told_before_anything_large_is_imported(call: str) -> None:
    code = "import sys; from flexref.cli.main import COMMANDS, command_group, run; "
    code += "print(run(command_group(COMMANDS), sys.argv[1:]), sum(__import__('os').times()[:2]), *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *call.split()], capture_output=True, text=True, check=True)
    exit_code, seconds, *loaded = done.stdout.split()
    assert exit_code in ("1", "2")  # a file that is not there is no wrong call
    assert not HEAVY & set(loaded)
    assert len(done.stderr.splitlines()) == 1
    assert float(seconds) < MOST_S
