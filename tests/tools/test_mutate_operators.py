"""The tool that mutates ports: what it changes, that its verdicts are right, and that its list of equals is true."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from mutate_operators_run import cuda_mutants, hanging, python_mutants  # noqa: E402
from mutate_operators_run.equivalent import equivalent, stale  # noqa: E402
from mutate_operators_run.mutant import Change, Mutant, mutants_of  # noqa: E402
from mutate_operators_run.mutating import Mutating, Outcome, chosen, kept, read_outcomes  # noqa: E402
from mutate_operators_run.ports import PORTS  # noqa: E402

PYTHON = '''"""A file."""
STEP: dict[int, int] = {1: 2}

class Sum:
    """Adds 1."""

    def of(self, x, first: int = 0):
        if first < 3 and x is not None:
            raise ValueError(f"{first + 1}")
        x[first:, 0] += np.maximum(x.transpose(1, 0), -0.5)
        return x
'''

CUDA = """// adds 1
#define TWO 2
template <int rows> __device__ __forceinline__ void add(float* x, int place) {
    if (threadIdx.x < rows && !place) x[place] += 0.5f * fminf(x[place + 1], 0x10u);
    __syncthreads();
}
"""


def changed(changes: Callable[[str], Iterator[Change]], text: str) -> set[str]:
    return {f"{mutant.before} -> {mutant.after}" for mutant in mutants_of("file", text, changes(text))}


def test_python_is_changed_in_numbers_comparisons_arithmetic_indices_axes_and_statements() -> None:
    assert changed(python_mutants.changes, PYTHON) == {
        *("1 -> 2", "1 -> 0", "2 -> 3", "0 -> 1", "3 -> 4", "0.5 -> 1.0", "-0.5 -> 0.5"),
        *("< -> <=", "and -> or", "is not -> is", "+= -> -=", "maximum -> minimum"),
        *("first -> ", "first:, 0 -> 0, first:", "1, 0 -> 0, 1"),
        "x[first:, 0] += np.maximum(x.transpose(1, 0), -0.5) -> pass",
    }


def test_cuda_is_changed_in_numbers_comparisons_arithmetic_indices_axes_and_barriers() -> None:
    assert changed(cuda_mutants.changes, CUDA) == {
        *(".x -> .y", "< -> <=", "&& -> ||", "! -> ", "place -> place + 1", "+= -> -=", "0.5f -> 1.0f", "* -> +"),
        *("fminf -> fmaxf", "+ -> -", "1 -> 2", "1 -> 0", "0x10u -> 0x11u", "__syncthreads() -> "),
    }


def test_a_mutant_knows_its_function_and_what_is_equal_is_counted() -> None:
    mutants = list(mutants_of("file", PYTHON, python_mutants.changes(PYTHON)))
    assert {mutant.owner for mutant in mutants if mutant.line > 5} == {"Sum.of"}
    assert {mutant.owner for mutant in mutants_of("file", CUDA, cuda_mutants.changes(CUDA))} == {"add"}
    text = "x = 5, 5\nx = 5, 5\n"
    assert [
        mutant.which for mutant in mutants_of("file", text, python_mutants.changes(text)) if mutant.after == "6"
    ] == [*range(4)]


@pytest.mark.parametrize("name", PORTS)
def test_every_file_of_a_port_is_mutated_kernels_too(name: str) -> None:
    port = PORTS[name]
    paths = port.folder.rglob("*.cu*" if port.emulated else "*.py")
    wanted = {str(path.relative_to(port.folder)) for path in paths if path.name != "__init__.py"}
    assert wanted <= set(port.files())


@pytest.mark.parametrize("name", ["numpy", "cupy-emulated"])
def test_every_mutant_of_a_port_is_one_change_with_a_name_of_its_own_that_python_can_read(name: str) -> None:
    port = PORTS[name]
    mutants = list(port.mutants())
    assert len({mutant.key for mutant in mutants}) == len(mutants) > 1000
    for mutant in mutants:
        text = (port.folder / mutant.file).read_text(encoding="utf-8")
        end = mutant.start + len(mutant.before)
        assert mutant.applied(text) == text[: mutant.start] + mutant.after + text[end:] != text
    for mutant in mutants[::5]:
        if mutant.file.endswith(".py"):
            ast.parse(mutant.applied((port.folder / mutant.file).read_text(encoding="utf-8")))


def test_a_mutant_of_another_text_is_refused() -> None:
    mutant = next(mutants_of("file", PYTHON, python_mutants.changes(PYTHON)))
    with pytest.raises(ValueError, match="has no"):
        mutant.applied("\n" + PYTHON)


def test_what_stands_in_the_text_of_an_instruction_is_no_code_and_what_follows_is() -> None:
    text = 'asm("{ .reg .b16 first; mov.b32 {first, 1}, %1; }" : "=r"(result) : "r"(both));\nint sum = a + b;\n'
    assert changed(cuda_mutants.changes, text) == {"+ -> -"}


@pytest.mark.parametrize("name", PORTS)
def test_what_is_listed_as_equivalent_is_still_a_mutant_and_has_a_reason(name: str) -> None:
    listed = equivalent(name)
    assert all(listed.values())
    if listed:
        assert stale(listed, (mutant.key for mutant in PORTS[name].mutants())) == []


def test_a_listed_mutant_whose_line_has_changed_is_found(tmp_path: Path) -> None:
    path = tmp_path / "equivalent.json"
    path.write_text(json.dumps({"numpy": [{"reason": "none", "mutants": ["a.py: x = 1: '1' -> '2'", "b"]}]}))
    assert stale(equivalent("numpy", path), ["b"]) == ["a.py: x = 1: '1' -> '2'"]
    assert equivalent("torch", path) == {}


def test_those_that_are_drawn_are_the_same_each_time_and_of_all_files() -> None:
    def mutants(file: str, count: int) -> list[Mutant]:
        return list(mutants_of(file, "x = 5\n" * count, python_mutants.changes("x = 5\n" * count)))

    every = [*mutants("a", 50), *mutants("b", 3), *mutants("c", 50)]
    drawn = chosen(every, 20, seed=1)
    assert drawn == chosen(every, 20, seed=1) != chosen(every, 20, seed=2)
    assert len({mutant.key for mutant in drawn}) == 20
    assert {file: sum(mutant.file == file for mutant in drawn) for file in "abc"} == {"a": 9, "b": 3, "c": 8}
    assert len(chosen(every, 1000, seed=0)) == len(every)


def test_results_are_read_again_the_last_ones_of_a_mutant_without_a_line_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    first, second = (Outcome("numpy", key, "a.py:1", "f", "constant", "survived") for key in "xy")
    again = Outcome("numpy", "x", "a.py:1", "f", "constant", "killed", "a_clause", 5)
    assert list(kept([first, second, again], path)) == [first, second, again]
    path.write_text(path.read_text() + '{"port": "num')
    assert read_outcomes(path) == [again, second]


@pytest.mark.parametrize(
    ("outcome", "examples", "words", "holds"),
    [
        ("killed", 5, "", True),
        ("survived", 100, "", True),
        ("survived", 25, "", False),
        ("survived", 100, "norms", False),
    ],
)
def test_that_a_mutant_lived_holds_for_no_more_than_it_was_tried_by(
    outcome: str, examples: int, words: str, holds: bool
) -> None:
    found = Outcome("numpy", "x", "a.py:1", "f", "constant", outcome, examples=examples, words=words)
    assert found.holds_for(100, ()) is holds
    assert found.holds_for(25, ["norms"])


NORM = "operators.py: if b is not None:: 'is not' -> 'is'", "operators.py: out += b: 'out += b' -> 'pass'"
"""Mutants of the norm: one that fails where there is no bias, one that forgets it."""


def planted(statement: str) -> Mutant:
    """A mutant of `layer_norm` that does this first."""
    line = "    np.subtract(x, x.mean(axis=-1, keepdims=True), out=out)"
    text = (PORTS["numpy"].folder / "operators.py").read_text(encoding="utf-8")
    start = text.index(line)
    at = (
        start,
        start + 4,
        f"    {statement}; ",
        "planted",
        "layer_norm",
        text.count("\n", 0, text.index("def layer_norm")) + 1,
    )
    return next(mutants_of("operators.py", text, [Change(*at)]))


def test_a_clause_kills_what_it_asks_for_and_no_other_mutant_and_a_crash_and_a_hang_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    by_shapes = Mutating(PORTS["numpy"], 5, ["norms_and_activations_have"])
    mutants = {mutant.key: mutant for mutant in PORTS["numpy"].mutants()}
    found = [by_shapes.outcome(mutants[key]) for key in NORM]
    assert [(one.outcome, one.clause) for one in found] == [
        ("killed", "norms_and_activations_have_their_shapes"),
        ("survived", ""),  # a shape is the same without a bias
    ]
    died = by_shapes.outcome(planted("__import__('os').abort()"))
    assert (died.outcome, died.clause) == ("killed", "norms_and_activations_have_their_shapes")
    assert "SIGABRT" in died.said
    monkeypatch.setattr(hanging, "SLEEPS", 2)
    hung = by_shapes.outcome(planted("__import__('time').sleep(1000)"))
    assert hung.outcome == "killed"
    assert "hung" in hung.said


def test_what_a_mutant_lets_a_port_keep_is_kept_in_a_folder_that_goes_away() -> None:
    by_shapes = Mutating(PORTS["numpy"], 5, ["norms_and_activations_have"])
    found = by_shapes.outcome(
        planted("from flexref.machine.names import kept_folder; raise OSError(kept_folder('what'))")
    )
    assert found.outcome == "killed"
    assert re.search(r"flexref-mutant-\w+/cache/what", found.said)


def test_a_mutant_of_a_function_that_no_clause_runs_lives_at_once() -> None:
    few = Mutating(PORTS["numpy"], 5, ["it_describes_itself"])
    mutant = next(one for one in PORTS["numpy"].mutants() if one.owner == "layer_norm")
    found = few.outcome(mutant)
    assert (found.outcome, found.seconds) == ("survived", 0.0)
    assert "no clause runs it" in found.said


def test_the_command_lists_mutants() -> None:
    command = [sys.executable, str(ROOT / "tools" / "mutate_operators"), "--port", "numpy", "--operator", "layer_norm"]
    done = subprocess.run([*command, "--all", "--list"], capture_output=True, text=True, check=True)
    assert all(key in done.stdout for key in NORM)
    assert "sampling.py" not in done.stdout
