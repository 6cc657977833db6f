"""The progress bar: on stderr, in bytes, and silent where nobody watches."""

import pytest

from flexref.cli.show.progress import byte_bar


def test_nothing_is_shown_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with byte_bar("converting") as on_progress:
        on_progress(1, 2)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_what_is_done_on_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with byte_bar("converting") as on_progress:
        on_progress(3 << 20, 4 << 20)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "converting" in shown.err
    assert "3.0/4.0 MiB" in shown.err
