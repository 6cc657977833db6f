"""Runs templates that nobody trusts: jinja2's sandbox, in which every step and every text is counted; it knows no chat.

jinja2 keeps a template from Python's insides, but not from work without end: loops in loops, a text times a billion, a
list of lists of itself that is printed. Here all that a template can call is listed, what makes large values out of
small ones is measured before it is done, and every pass of a loop, every call and every value is paid for from a
`chat_calls.StepMeter`. What runs out is a `PromptError`, at the same step on every machine. Steps are bounded, seconds
are not: a step is one of Python's own functions at work on texts of at most `MOST_TEXT` characters.
"""

from typing import Any, cast

from jinja2 import TemplateError, Undefined, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from flexref.text.chat_allowed import FILTERS, TESTS
from flexref.text.chat_calls import (
    CHARACTERS_A_STEP,
    FUNCTIONS,
    check_callable,
    check_name,
    meter_of,
    safe_filter,
    safe_test,
    to_json,
)

MOST_NESTED = 100
"""Bounds how deep a template's tree is, which is compiled by functions that call themselves; a long sum is deep."""

READ, MADE, STEP = "flexref read", "flexref made", "flexref step"
"""Filters that only `_Counted` can put into a template: these names cannot be spelled in one."""


class GenerationTag(Extension):
    """`{% generation %}`, with which templates mark what a model says, for training; here it marks nothing."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 has it so

    def parse(self, parser: Parser) -> nodes.Node:
        """The body as it stands, with its own variables, as in `transformers`."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of templates that `counted` has made."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[GenerationTag, loopcontrols]
        )
        self.filters = {
            **{name: safe_filter(name, self.filters[name]) for name in FILTERS},
            "tojson": to_json,
            READ: pass_context(lambda context, value: meter_of(context).read(value)),
            MADE: pass_context(lambda context, value: meter_of(context).made(value)),
            STEP: pass_context(lambda context, steps: meter_of(context).spend(steps)),
        }
        self.tests = {name: safe_test(name, cast(Any, inner)) for name, inner in self.tests.items() if name in TESTS}
        self.globals = dict(FUNCTIONS)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Arithmetic, with the size of the result known before."""
        meter = meter_of(context)
        if operator == "+" and type(left) is str and type(right) is str:  # most of what templates do
            meter.check_text(len(left) + len(right))
            return left + right
        if operator == "**" or (operator == "%" and isinstance(left, str)):
            raise SecurityError("it raises to a power, or formats text with %, which a chat template may not")
        if operator == "*":
            for many, times in ((left, right), (right, left)):
                if isinstance(many, (str, list, tuple)) and isinstance(times, int):
                    meter.check_text(len(many) * times * (1 if isinstance(many, str) else CHARACTERS_A_STEP))
        return meter.made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a macro, one of `FUNCTIONS`, or a method that is listed."""
        meter = meter_of(__context)
        if isinstance(__obj, Undefined):
            __obj()  # raises what says which name has no value
        given = (*args, *kwargs.values())
        if not isinstance(__obj, Macro):
            check_callable(meter, __obj, given)
            return meter.made(super().call(__context, __obj, *args, **kwargs))
        for value in given:
            meter.made(value)
        with meter.called():
            return meter.made(super().call(__context, __obj, *args, **kwargs))


def counted(sandbox: Sandbox, source: str) -> nodes.Template:
    """The template's tree with its steps counted; raises what jinja2 raises for a source that is no template."""
    parsed = sandbox.parse(source)
    if _depth(parsed) > MOST_NESTED:
        raise TemplateError(f"it is nested more than {MOST_NESTED} deep")
    tree: nodes.Template = _Counted(sandbox).visit(parsed)
    return tree


class _Counted(NodeTransformer):
    """Puts what counts into a tree, and refuses what cannot be counted."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    def _through(self, name: str, value: nodes.Node | None) -> nodes.Filter:
        made = nodes.Filter(value, name, [], [], None, None, lineno=1 if value is None else value.lineno)
        made.set_environment(self._sandbox)
        return made

    def _paid(self, body: list[nodes.Node]) -> list[nodes.Node]:
        """The statements, after one that pays for them."""
        size = sum(_size(node) for node in body)
        first = nodes.ExprStmt(self._through(STEP, nodes.Const(size, lineno=1)), lineno=1)
        return [first.set_environment(self._sandbox), *body]

    def visit_For(self, node: nodes.For) -> nodes.Node:
        """A loop pays for its values, and for every pass."""
        if node.recursive:
            raise TemplateError("a loop that calls itself is not supported")
        self.generic_visit(node)
        node.iter, node.body = self._through(MADE, node.iter), self._paid(node.body)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        """A macro pays for every call."""
        self.generic_visit(node)
        node.body = self._paid(node.body)
        return node

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        """What a macro is called with is a macro."""
        self.generic_visit(node)
        node.body = self._paid(node.body)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        """What is written is plain data."""
        self.generic_visit(node)
        node.nodes = [
            each if isinstance(each, nodes.TemplateData) else self._through(READ, each) for each in node.nodes
        ]
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        """What is compared is looked at as a whole."""
        self.generic_visit(node)
        node.expr = self._through(READ, node.expr)
        for operand in node.ops:
            operand.expr = self._through(READ, operand.expr)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        """What is joined becomes text."""
        self.generic_visit(node)
        node.nodes = [self._through(READ, each) for each in node.nodes]
        return self._through(MADE, node)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        """A part of a text or a list is a copy."""
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            return self._through(MADE, node)
        if not isinstance(node.arg, nodes.Const):
            node.arg = self._through(READ, node.arg)
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:
        """Keys are plain data."""
        self.generic_visit(node)
        node.key = self._through(READ, node.key)
        return node

    def visit_NSRef(self, node: nodes.NSRef) -> nodes.Node:
        """No name of Python's own is set."""
        check_name(node.attr)
        return node

    def _refused(self, node: nodes.Node) -> nodes.Node:
        raise TemplateError(f"{type(node).__name__.lower()} is not supported in a chat template")

    visit_Include = visit_Import = visit_FromImport = visit_Extends = visit_Block = _refused


def _size(node: nodes.Node) -> int:
    """Nodes of a tree; a static text counts by its length."""
    found, waiting = 0, [node]
    while waiting:
        each = waiting.pop()
        found += 1
        if isinstance(each, nodes.TemplateData):
            found += len(each.data) // CHARACTERS_A_STEP
        waiting.extend(each.iter_child_nodes())
    return found


def _depth(node: nodes.Node) -> int:
    """How deep a tree is."""
    depth, level = 0, [node]
    while level:
        depth, level = depth + 1, [child for each in level for child in each.iter_child_nodes()]
    return depth
