"""Settings of a process while threads are in a context: changed by the first, undone by the last."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from flexref.backend.process_settings import WhileInside, put_back


@given(steps=st.lists(st.sampled_from(("in", "out")), max_size=20))
def test_what_is_changed_stays_so_until_nobody_is_inside(steps: list[str]) -> None:
    value, inside = "user's", 0

    def change() -> Callable[[], None]:
        nonlocal value
        assert value == "user's"
        value = "ours"

        def undo() -> None:
            nonlocal value
            value = "user's"

        return undo

    context = WhileInside(change)
    for step in steps:
        if step == "in":
            context.__enter__()
            inside += 1
        elif inside:
            context.__exit__(None, None, None)
            inside -= 1
        assert value == ("ours" if inside else "user's")


def test_a_librarys_own_context_is_entered_once_and_left_by_the_last() -> None:
    seen = []

    @contextmanager
    def chosen() -> Iterator[None]:
        seen.append("in")
        yield
        seen.append("out")

    context = WhileInside.of(chosen)
    for _ in range(2):
        with context, context:
            seen.append("here")
    assert seen == ["in", "here", "out"] * 2


class Inherits:
    """A setting that is what the general one says, as long as it is `none` itself."""

    def __init__(self, general: str) -> None:
        self.general, self.own = general, "none"

    @property
    def value(self) -> str:
        return self.general if self.own == "none" else self.own

    @value.setter
    def value(self, value: str) -> None:
        self.own = value


@given(general=st.sampled_from("ab"), own=st.sampled_from(("none", "a", "b")))
def test_a_setting_is_put_back_and_still_inherits(general: str, own: str) -> None:
    setting = Inherits(general)
    setting.own = own
    before, setting.value = setting.value, "exact"
    put_back(setting, "value", before, "none")
    assert setting.value == before
    assert setting.own == ("none" if own in {"none", general} else own)


def test_a_setting_that_inherits_from_nothing_is_put_back() -> None:
    setting = SimpleNamespace(value="exact")
    put_back(setting, "value", "user's", "none")
    assert setting.value == "user's"
