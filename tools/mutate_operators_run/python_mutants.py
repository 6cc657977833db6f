"""Changes of a Python file, from its syntax tree: constants, comparisons, arithmetic, indices, axes, statements."""

import ast
import re
from collections.abc import Iterator
from itertools import pairwise

from mutate_operators_run.mutant import Change

COMPARISONS: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}
ARITHMETIC: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "+"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "//"),
    ast.Pow: ("**", "*"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
    ast.BitXor: ("^", "&"),
    ast.MatMult: ("@", "*"),
}
FUNCTIONS = {"min": "max", "max": "min"}
METHODS = {
    **FUNCTIONS,
    **{"maximum": "minimum", "minimum": "maximum", "argmax": "argmin", "argmin": "argmax", "any": "all", "all": "any"},
    **{"add": "subtract", "subtract": "add", "multiply": "add", "ceil": "floor", "floor": "ceil"},
    **{"float32": "float16", "float16": "float32", "int32": "int16", "int64": "int32", "uint8": "int8"},
}
STRINGS = {
    **{"left": "right", "right": "left", "float32": "float16", "float16": "float32", "int32": "int64"},
}
"""What stands in the place of functions, of methods and types after a dot, and of strings."""

AXES = ("transpose", "permute", "reshape", "swapaxes", "view", "movedim")
"""Methods whose arguments are axes, or lengths of axes."""

TYPES = (
    "dict",
    "list",
    "tuple",
    "set",
    "frozenset",
    "defaultdict",
    "Counter",
    "NDArray",
    "Mapping",
    "Sequence",
    "Callable",
)
"""What stands in brackets after these is a type, which computes nothing."""

SKIPPED = (ast.Raise, ast.Assert, ast.Import, ast.ImportFrom, ast.JoinedStr, ast.Global, ast.Nonlocal)
"""What is said of a mistake changes no result."""


def changes(text: str) -> Iterator[Change]:
    """All changes of the text of a Python file."""
    yield from _Changes(text).of(ast.parse(text))


class _Changes:
    def __init__(self, text: str) -> None:
        self._text = text
        self._lines = text.splitlines(keepends=True)
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line))
        self._owner, self._owner_line = "", 0

    def of(self, node: ast.AST) -> Iterator[Change]:
        """The changes of a node and of all below it."""
        if isinstance(node, SKIPPED) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            return
        if isinstance(node, ast.Subscript) and _name_of(node.value) in TYPES:
            return
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield from self._inside(node)
            return
        if isinstance(node, ast.AnnAssign):  # an annotation computes nothing
            yield from self.of(node.value) if node.value else ()
            return
        yield from self._own(node)
        for child in ast.iter_child_nodes(node):
            yield from self.of(child)

    def _inside(self, node: ast.FunctionDef | ast.ClassDef) -> Iterator[Change]:
        outer = self._owner, self._owner_line
        self._owner = f"{outer[0]}.{node.name}" if outer[0] else node.name
        if isinstance(node, ast.FunctionDef):
            self._owner_line = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            for default in (*node.args.defaults, *filter(None, node.args.kw_defaults)):
                yield from self.of(default)
        for statement in node.body:
            yield from self.of(statement)
        self._owner, self._owner_line = outer

    def _own(self, node: ast.AST) -> Iterator[Change]:
        """The changes of a node itself."""
        if isinstance(node, ast.Constant):
            yield from self._constant(node)
        elif isinstance(node, ast.BinOp | ast.AugAssign | ast.UnaryOp):
            yield from self._arithmetic(node)
        elif isinstance(node, ast.Compare):
            left: ast.expr = node.left
            for sign, right in zip(node.ops, node.comparators, strict=True):
                yield from self._between(left, right, *COMPARISONS[type(sign)], "comparison")
                left = right
        elif isinstance(node, ast.BoolOp):
            signs = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
            for first, second in pairwise(node.values):
                yield from self._between(first, second, *signs, "comparison")
        elif isinstance(node, ast.Continue) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
            yield self._change(node, "pass", "statement")
        elif isinstance(node, ast.Subscript):
            yield from self._index(node.slice)
        elif isinstance(node, ast.Call):
            yield from self._call(node)
        elif isinstance(node, ast.Name | ast.Attribute):
            yield from self._name(node)

    def _arithmetic(self, node: ast.BinOp | ast.AugAssign | ast.UnaryOp) -> Iterator[Change]:
        if isinstance(node, ast.UnaryOp):
            if isinstance(node.op, ast.Not | ast.USub):
                yield self._change(node, self._of(node.operand), "arithmetic")
            return
        before, after = ARITHMETIC[type(node.op)]
        if isinstance(node, ast.BinOp):
            yield from self._between(node.left, node.right, before, after, "arithmetic")
        else:
            yield from self._between(node.target, node.value, f"{before}=", f"{after}=", "arithmetic")
            yield self._change(node, "pass", "statement")

    def _constant(self, node: ast.Constant) -> Iterator[Change]:
        value = node.value
        if isinstance(value, bool):
            yield self._change(node, str(not value), "constant")
        elif isinstance(value, int):
            yield self._change(node, str(value + 1), "constant")
            if value == 1:
                yield self._change(node, "0", "constant")
        elif isinstance(value, float):
            yield self._change(node, repr(value * 2 if value else 1.0), "constant")
        elif isinstance(value, str) and value in STRINGS:
            yield self._change(node, repr(STRINGS[value]), "constant")

    def _index(self, index: ast.expr) -> Iterator[Change]:
        parts = index.elts if isinstance(index, ast.Tuple) else [index]
        for part in parts:
            for edge in (part.lower, part.upper) if isinstance(part, ast.Slice) else ():
                if edge is not None:
                    yield self._change(edge, "", "index")
        yield from self._swaps(parts, "index")

    def _call(self, node: ast.Call) -> Iterator[Change]:
        if isinstance(node.func, ast.Attribute) and node.func.attr in AXES:
            axes = node.args[0].elts if len(node.args) == 1 and isinstance(node.args[0], ast.Tuple) else node.args
            yield from self._swaps(axes, "axes")

    def _swaps(self, parts: list[ast.expr], kind: str) -> Iterator[Change]:
        """Neighbours in each other's place."""
        for first, second in pairwise(parts):
            start, end, middle = self._start(first), self._end(second), slice(self._end(first), self._start(second))
            after = self._of(second) + self._text[middle] + self._of(first)
            yield Change(start, end, after, kind, self._owner, self._owner_line)

    def _name(self, node: ast.Name | ast.Attribute) -> Iterator[Change]:
        name = _name_of(node)
        others = FUNCTIONS if isinstance(node, ast.Name) else METHODS
        if name in others and isinstance(node.ctx, ast.Load):
            end = self._end(node)
            yield Change(end - len(name), end, others[name], "function", self._owner, self._owner_line)

    def _between(self, left: ast.AST, right: ast.AST, before: str, after: str, kind: str) -> Iterator[Change]:
        """The operator between two operands."""
        first, last = self._end(left), self._start(right)
        pattern = r"\s+".join(re.escape(word) for word in before.split())
        found = re.search(pattern, self._text[first:last])
        if found is None:
            raise ValueError(f"no {before!r} in {self._text[first:last]!r}")
        start, end = first + found.start(), first + found.end()
        yield Change(start, end, after, kind, self._owner, self._owner_line)

    def _change(self, node: ast.AST, after: str, kind: str) -> Change:
        return Change(self._start(node), self._end(node), after, kind, self._owner, self._owner_line)

    def _of(self, node: ast.AST) -> str:
        return self._text[self._start(node) : self._end(node)]

    def _start(self, node: ast.AST) -> int:
        return self._offset(node.lineno, node.col_offset)  # type: ignore[attr-defined]

    def _end(self, node: ast.AST) -> int:
        return self._offset(node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]

    def _offset(self, line: int, byte: int) -> int:
        """Characters before a place that the tree names in bytes of its line."""
        return self._starts[line - 1] + len(self._lines[line - 1].encode()[:byte].decode())


def _name_of(node: ast.expr) -> str:
    """The last word of a dotted name; "" of anything else."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
