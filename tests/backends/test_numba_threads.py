"""Threads that share the parts of an operator end together, whatever one of them ends with."""

import threading

import pytest

threads = pytest.importorskip("flexref_numba.threads", reason="numba is not installed")


def test_what_ends_one_part_is_raised_when_the_others_have_ended() -> None:
    begun, may_end, ended = threading.Event(), threading.Event(), list[int]()

    def call(part: int) -> None:
        if part == 0:
            begun.wait()
            threading.Timer(0.05, may_end.set).start()
            raise KeyboardInterrupt
        begun.set()
        may_end.wait()
        ended.append(part)

    some = threads.Threads(2)
    try:
        with pytest.raises(KeyboardInterrupt):
            some.run([(0,), (1,)], call)
        assert ended == [1]
    finally:
        may_end.set()
        some.close()
