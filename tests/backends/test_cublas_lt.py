"""Which of cublasLt's algorithms the CUDA port multiplies by, with a library that computes nothing in its place."""

import ctypes
from dataclasses import dataclass, field
from typing import Any

import pytest
from flexref_cupy import cublas_lt
from flexref_cupy.cublas_lt import ANY_TOKENS, CublasLt

SPLIT_K = 2
"""cublasLt's number for the parts that an algorithm cuts the inputs into."""


@dataclass
class Known:
    """An algorithm of the library: its number, the parts it cuts inputs into, its memory, and the tokens it takes."""

    number: int
    parts: int = 0
    workspace: int = 0
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
        self.asked.append(self.alive[right.value][2])
        for place, known in enumerate(self.known[:most]):
            found[place].algorithm.data[0] = known.number
            found[place].workspace = known.workspace
        count._obj.value = min(most, len(self.known))
        return 0

    def _known(self, number: int) -> Known:
        return next(known for known in self.known if known.number == number)

    def cublasLtMatmulAlgoConfigGetAttribute(
        self, algorithm: Any, attribute: int, value: Any, size: Any, written: Any
    ) -> int:
        known = self._known(algorithm._obj.data[0])
        value._obj.value = {0: known.number, SPLIT_K: known.parts}.get(attribute, 0)
        return 0

    def cublasLtMatmulAlgoCheck(self, *arguments: Any) -> int:
        _, _, _, right, _, _, algorithm, found = arguments
        known = self._known(algorithm._obj.data[0])
        found._obj.workspace = known.workspace
        return 0 if self.alive[right.value][2] <= known.most else 15

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


def test_one_algorithm_multiplies_any_number_of_tokens_and_cuts_no_inputs() -> None:
    few, split, greedy = Known(1, most=128), Known(2, parts=4), Known(3, workspace=8)
    library = Library([few, split, greedy, Known(4, parts=1), Known(5)])
    products = CublasLt(0, library)
    for tokens in (1, 17, 4096, 100_000):
        multiply(products, tokens)
    assert library.multiplied == [(4, 64, tokens) for tokens in (1, 17, 4096, 100_000)]
    assert library.asked == [cublas_lt.ASKED_TOKENS]
    assert library.preferences == {1: 0, 3: 0}  # no memory, no reduction


def test_every_matrix_has_an_algorithm_of_its_own() -> None:
    library = Library([Known(1)])
    products = CublasLt(0, library)
    multiply(products, 5)
    library.known = [Known(2), Known(1)]
    multiply(products, 5, outputs=128)
    multiply(products, 7)
    assert [number for number, _, _ in library.multiplied] == [1, 2, 1]


def test_a_matrix_that_no_algorithm_takes_for_any_number_of_tokens_is_an_error() -> None:
    products = CublasLt(0, Library([Known(1, most=max(ANY_TOKENS) - 1), Known(2, parts=2)]))
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
