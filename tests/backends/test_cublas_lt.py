"""Which of cublasLt's algorithms the CUDA port multiplies by, with a library that computes nothing in its place."""

import ctypes
from dataclasses import dataclass, field
from typing import Any

import pytest
from flexref_cupy.driver import cublas_lt
from flexref_cupy.driver.cublas_lt import USUAL_TOKENS, CublasLt

SPLIT_K = 2
"""cublasLt's number for the parts that an algorithm cuts the inputs into."""


@dataclass
class Known:
    """An algorithm of the library: its number and family, the parts it cuts inputs into, its memory, its tokens."""

    number: int
    family: int = 66
    parts: int = 0
    workspace: int = 0
    least: int = 1
    most: int = 1 << 20


@dataclass
class Library:
    """Answers as cublasLt does, with the algorithms that it is given; layouts and descriptions are numbers."""

    known: list[Known]
    alive: dict[int, Any] = field(default_factory=dict)
    multiplied: list[tuple[int, int, int]] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    preferences: dict[int, int] = field(default_factory=dict)

    def _make(self, what: Any, thing: Any) -> int:
        number = len(self.alive) + 1
        while number in self.alive:
            number += 1
        self.alive[number] = thing
        what._obj.value = number
        return 0

    def cublasLtCreate(self, handle: Any) -> int:
        return self._make(handle, "handle")

    def cublasLtMatmulDescCreate(self, made: Any, compute: int, scale: int) -> int:
        return self._make(made, (compute, scale))

    def cublasLtMatmulPreferenceCreate(self, made: Any) -> int:
        return self._make(made, "preference")

    def cublasLtMatrixLayoutCreate(self, made: Any, kind: int, rows: Any, columns: Any, pitch: Any) -> int:
        return self._make(made, (kind, rows.value, columns.value, pitch.value))

    def _destroy(self, what: Any) -> int:
        del self.alive[what.value]
        return 0

    cublasLtMatrixLayoutDestroy = _destroy
    cublasLtMatmulPreferenceDestroy = _destroy
    cublasLtMatmulDescDestroy = _destroy
    cublasLtDestroy = _destroy

    def cublasLtMatmulDescSetAttribute(self, what: Any, attribute: int, value: Any, size: Any) -> int:
        return 0 if (attribute, value._obj.value, size.value) == (3, 1, 4) else 7

    def cublasLtMatmulPreferenceSetAttribute(self, what: Any, attribute: int, value: Any, size: Any) -> int:
        self.preferences[attribute] = value._obj.value
        return 0 if size.value == {1: 8, 3: 4}[attribute] else 7

    def cublasLtMatmulAlgoGetHeuristic(self, *arguments: Any) -> int:
        _, _, _, right, _, _, _, most, found, count = arguments
        tokens = self.alive[right.value][2]
        self.asked.append(tokens)
        named = [known for known in self.known if known.least <= tokens <= known.most][:most]
        for place, known in enumerate(named):
            found[place].algorithm.data[0] = known.number
            found[place].workspace = known.workspace
        count._obj.value = len(named)
        return 0

    def _known(self, number: int) -> Known:
        return next(known for known in self.known if known.number == number)

    def cublasLtMatmulAlgoConfigGetAttribute(
        self, algorithm: Any, attribute: int, value: Any, size: Any, written: Any
    ) -> int:
        known = self._known(algorithm._obj.data[0])
        value._obj.value = {0: known.family, SPLIT_K: known.parts}.get(attribute, 0)
        return 0

    @property
    def cublasLtMatmul(self) -> Any:
        """A function that takes `argtypes`, as those of `ctypes` do."""

        class Call:
            argtypes: Any = None

            def __call__(call, *arguments: Any) -> int:
                left, right, algorithm = arguments[4], arguments[6], arguments[12]
                number = ctypes.c_uint64.from_buffer_copy(algorithm).value
                self.multiplied.append((number, self.alive[left.value][2], self.alive[right.value][2]))
                return 0

        return Call()


def multiply(products: CublasLt, tokens: int, outputs: int = 64, inputs: int = 128) -> None:
    products.multiply((tokens, outputs, inputs), (256, inputs), (512, inputs), (1024, outputs, "float16"), False)


def test_the_first_algorithm_that_cuts_no_inputs_and_needs_no_memory_multiplies() -> None:
    split, greedy, few = Known(1, parts=4), Known(2, workspace=8), Known(3, most=128)
    library = Library([split, greedy, few, Known(4, parts=1), Known(5)])
    products = CublasLt(0, library)
    for tokens in (1, 17, 4096, 100_000, 17):
        multiply(products, tokens)
    expected = [(3, 1), (3, 17), (4, 4096), (4, 100_000), (3, 17)]
    assert [(number, tokens) for number, _, tokens in library.multiplied] == expected
    assert library.asked == [USUAL_TOKENS, 1, 17, 4096, 100_000]  # once for each
    assert library.preferences == {1: 0, 3: 0}  # no memory, no reduction


def test_one_family_of_algorithms_multiplies_any_number_of_tokens() -> None:
    vectors, usual, other = Known(1, family=7, most=16), Known(2, least=8), Known(3, family=8)
    library = Library([vectors, usual, other])
    products = CublasLt(0, library)
    for tokens in (1, 8, 17):
        multiply(products, tokens)
    assert [number for number, _, _ in library.multiplied] == [2, 2, 2]


def test_every_matrix_has_algorithms_of_its_own() -> None:
    library = Library([Known(1)])
    products = CublasLt(0, library)
    multiply(products, 5)
    library.known = [Known(2), Known(1)]
    multiply(products, 5, outputs=128)
    multiply(products, 5)
    assert [number for number, _, _ in library.multiplied] == [1, 2, 1]


def test_a_matrix_for_which_there_is_no_algorithm_is_an_error() -> None:
    products = CublasLt(0, Library([Known(1, most=USUAL_TOKENS - 1), Known(2, parts=2)]))
    with pytest.raises(RuntimeError, match=r"no algorithm .* \(64, 128\)"):
        multiply(products, 5)


def test_descriptions_are_kept_up_to_a_number_and_all_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cublas_lt, "MOST_CALLS", 10)
    library = Library([Known(1)])
    products = CublasLt(0, library)
    most = 0
    for tokens in (*range(1, 100), 5):
        multiply(products, tokens)
        most = max(most, len(library.alive))
    assert library.multiplied[-1] == (1, 64, 5)
    assert most < 40
    products.close()
    assert not library.alive
