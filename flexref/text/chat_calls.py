"""What a chat template may call, and what each call costs: functions, methods, filters and tests; it knows no template.

A value that can be large is measured before it is made. See `chat_sandbox` for who asks.
"""

import json
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from jinja2 import TemplateError, Undefined, pass_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.utils import Namespace

from flexref.errors import PromptError
from flexref.text.chat_allowed import COMPARING_TESTS, METHODS, NUMBER_TESTS, TEXT_FILTERS

MOST_TEXT = 1 << 24
"""Characters of one text, at most."""

CHARACTERS_A_STEP = 16
"""So many characters are paid for like one step. So all texts together have 16 times as many as there are steps."""

MOST_WHOLE = 1 << 64
"""Bounds whole numbers, which would else grow without end."""

MOST_DEPTH = 16
"""Bounds how deep lists lie in lists where they are compared or become text."""

MOST_INDENT = 16
"""Bounds what is put before a line."""

MOST_CALLS = 32
"""Bounds how deep macros call macros: without it the caller's own depth would decide how far a template comes."""

METER = "flexref meter"
"""Where a rendering keeps its meter: no template can spell this name."""


class StepMeter:
    """What a rendering may still do, in steps."""

    def __init__(self, steps: int) -> None:
        self._left, self._calls = steps, 0

    @contextmanager
    def called(self) -> Iterator[None]:
        """A macro is at work."""
        if self._calls == MOST_CALLS:
            raise PromptError(f"the chat template calls macros more than {MOST_CALLS} deep")
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1

    def spend(self, steps: int) -> None:
        """Pay for so many steps; `PromptError` where there are no more."""
        self._left -= steps
        if self._left < 0:
            raise PromptError("the chat template takes too many steps")

    def check_text(self, characters: int) -> None:
        """Pay for a text of so many characters, which is to be made."""
        if characters > MOST_TEXT:
            raise PromptError(f"the chat template makes a text of {characters} characters, at most {MOST_TEXT} fit")
        self._left -= 1 + characters // CHARACTERS_A_STEP  # `spend`, in the way of every text
        if self._left < 0:
            self.spend(0)

    def made(self, value: Any) -> Any:
        """The value, paid for by its length, however long its items are."""
        if isinstance(value, str):
            self.check_text(len(value))
        elif isinstance(value, int) and abs(value) > MOST_WHOLE:
            raise PromptError("the chat template makes a number of more than 64 bits")
        else:
            self.spend(1 + (len(value) if isinstance(value, (list, tuple, dict, range)) else 0))
        return value

    def read(self, value: Any, depth: int = 0) -> Any:
        """The value, paid for with all that it holds; `PromptError` for what is no plain data: it has no fixed text."""
        if isinstance(value, str):
            self.check_text(len(value))
        elif value is None or isinstance(value, int | float | Undefined):
            self.spend(1)
        elif depth == MOST_DEPTH:
            raise PromptError(f"the chat template uses lists in lists more than {MOST_DEPTH} deep")
        elif isinstance(value, range):
            self.spend(1 + len(value))
        elif isinstance(value, list | tuple | KeysView | ValuesView | ItemsView):
            self.spend(1 + depth)
            for item in value:
                self.read(item, depth + 1)
        elif isinstance(value, dict):
            self.spend(1 + depth)
            for key, item in value.items():
                self.read(key, depth + 1)
                self.read(item, depth + 1)
        else:
            raise PromptError(f"the chat template uses a {type(value).__name__} as if it were text")
        return value

    def listed(self, values: Iterator[Any]) -> list[Any]:
        """What a filter would give one by one."""
        found = []
        for value in values:
            self.spend(1)
            found.append(value)
        return found


def meter_of(context: Context) -> StepMeter:
    """The meter of the rendering."""
    meter: StepMeter = context.parent[METER]
    return meter


def check_name(name: str) -> None:
    """`SecurityError` for a name of Python's own."""
    if name.startswith("_"):
        raise SecurityError(f"it sets the name {name!r}, which a chat template may not")


def _namespace(*given: Any, **named: Any) -> Namespace:
    values = dict(*given, **named)
    for name in values:
        check_name(str(name))
    return Namespace(values)


def _dict(*given: Any, **named: Any) -> dict[Any, Any]:
    return dict(*given, **named)


class TemplateRefusal(TemplateError):
    """What a template says of messages that it cannot write."""


def _refuse(message: Any = "") -> None:
    raise TemplateRefusal(str(message))


FUNCTIONS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {"range": range, "namespace": _namespace, "dict": _dict, "raise_exception": _refuse}
)
"""The functions of a template. `strftime_now` of `transformers` is none: what is written depends on no clock."""


def check_callable(meter: StepMeter, called: Any, given: tuple[Any, ...]) -> None:
    """Pay for a call of a function or a method before it is made; `SecurityError` for what must not be called."""
    if any(called is function for function in FUNCTIONS.values()):
        for value in given:
            meter.read(value)
        return
    owner, name = getattr(called, "__self__", None), getattr(called, "__name__", type(called).__name__)
    kinds = [kind for kind in METHODS if isinstance(owner, kind)]
    if not kinds or name not in METHODS[kinds[0]]:
        raise SecurityError(f"it calls {name!r}, which a chat template may not")
    for value in given:
        meter.read(value)
    if not isinstance(owner, str):
        meter.made(owner)
    elif name == "join":
        _check_join(meter, owner, list(given[0]) if given else [])
    elif name == "replace":
        _check_replace(meter, owner, given)
    else:
        meter.spend(1 + len(owner))  # it may be split into its characters


def _check_join(meter: StepMeter, between: Any, values: Any) -> None:
    """Pay for what joins the values; they have been paid for."""
    meter.check_text(len(str(meter.read(between))) * len(values))


def _check_replace(meter: StepMeter, text: str, given: tuple[Any, ...]) -> None:
    if len(given) < 2 or not isinstance(given[0], str) or not isinstance(given[1], str):
        raise PromptError("the chat template replaces what is no text")
    meter.check_text(len(text) + text.count(given[0]) * len(given[1]))


def _listed(meter: StepMeter, result: Any) -> Any:
    """The result of a filter; what it would give one by one is a list."""
    return meter.made(meter.listed(result) if isinstance(result, Iterator) else result)


def safe_filter(name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
    """The filter `inner` of jinja2, paid for."""
    deep, passed = name in TEXT_FILTERS, getattr(inner, "jinja_pass_arg", None)

    @pass_context
    def paid(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        meter = meter_of(context)
        (meter.read if deep else meter.made)(value)
        for given in (*args, *kwargs.values()):
            meter.read(given)
        if name == "list" and isinstance(value, str):
            meter.spend(len(value))
        elif name == "join":
            _check_join(meter, args[0] if args else kwargs.get("d", ""), value if hasattr(value, "__len__") else ())
        elif name == "replace":
            value = value if isinstance(value, str) else str(value)
            _check_replace(meter, value, args)
        elif name == "indent":
            value = value if isinstance(value, str) else str(value)
            _check_indent(meter, value, args[0] if args else kwargs.get("width", 4))
        if passed is None:
            return _listed(meter, inner(value, *args, **kwargs))
        first = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}[passed.name]
        return _listed(meter, inner(first, value, *args, **kwargs))

    return paid


def _check_indent(meter: StepMeter, text: str, width: Any) -> None:
    most = len(width) if isinstance(width, str) else width
    if not isinstance(most, int) or most > MOST_INDENT:
        raise PromptError(f"the chat template indents by {width!r:.40}, at most {MOST_INDENT} is possible")
    meter.check_text(len(text) + max(0, most) * (1 + text.count("\n")))


@pass_context
def to_json(
    context: Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """A value as JSON, with the arguments of `transformers`' filter of this name."""
    meter = meter_of(context)
    for given in (ensure_ascii, indent, separators, sort_keys):
        meter.read(given)
    if indent is not None:
        _check_indent(meter, "", indent)
    if separators is not None and any(len(each) > MOST_INDENT for each in separators):
        raise PromptError("the chat template separates JSON by long texts")
    for _ in range(1 + MOST_DEPTH * bool(indent or separators)):
        meter.read(value)
    text = json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys, allow_nan=True
    )
    meter.check_text(len(text))
    return text


def safe_test(name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
    """The test `inner` of jinja2, paid for."""

    @pass_context
    def paid(context: Context, value: Any, *args: Any) -> Any:
        meter = meter_of(context)
        for given in args:
            meter.read(given)
        if name in NUMBER_TESTS and not isinstance(value, int | float):
            raise PromptError(f"the chat template asks whether something is {name} that is no number")
        (meter.read if name in COMPARING_TESTS else meter.made)(value)
        return inner(value, *args)

    return paid
