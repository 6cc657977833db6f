"""The figures of a job from its files: the journal, the output and the errors, while it runs or afterwards."""

from dataclasses import replace
from datetime import datetime
from os.path import normpath
from pathlib import Path
from platform import node

from psutil import pid_exists

from flexref.batch_job.journal.reading import journal_path, read_journal, read_notes
from flexref.batch_job.journal.records import OpenedRecord
from flexref.batch_job.report.figures import CountedLines, JobFigures, figures_of
from flexref.batch_job.report.history import history_of
from flexref.batch_job.report.tally import Tally, add_answers
from flexref.errors import StorageError


def read_job(output: str, errors: str | None, now: datetime, usd_per_hour: float | None = None) -> JobFigures:
    """The figures of the job whose answers go to `output`, as they are `now`.

    `errors`: where failed lines went; None: where the journal says, seen from its folder.
    A price of an hour that is given stands for all runs, in place of what they were told.

    No lock is taken: the job may run. Raises `StorageError` for files that cannot be read, or if there is no journal,
    and `BatchError` for a damaged one and for a line that is no answer.
    """
    journal = journal_path(output)
    if not journal.exists():
        raise StorageError(
            f"there is no journal {journal}: a report is made from what `flexref batch` keeps beside its output "
            "(but for a standard stream, and for what `flexref batch merge` joined: there each shard has its own)"
        )
    contents = read_journal(journal)
    history, tally = history_of(read_notes(journal)), Tally()
    found = errors or errors_of(journal, contents.opened)
    for path in (output, found):
        # The files of a job that has only begun may not be there yet; one that somebody names must be.
        if path is not None and (path is errors or Path(path).exists()):
            add_answers(tally, path)
    if usd_per_hour is not None:
        history.set_price(usd_per_hour)
    counted = CountedLines(
        contents.expected, contents.done, contents.failed, contents.finished, is_alive(contents.opened)
    )
    return replace(figures_of(history, tally, output, now, counted), errors=found)


def errors_of(journal: Path, opened: OpenedRecord | None) -> str | None:
    """Where a journal says that failed lines go, if they have a file of their own; job and journal may be moved."""
    return None if opened is None or opened.errors is None else normpath(journal.parent / opened.errors)


def is_alive(opened: OpenedRecord | None) -> bool | None:
    """Whether the process that holds a journal, or held it last, is there; None where this machine cannot tell."""
    if opened is None or opened.host != node():
        return None
    return bool(pid_exists(opened.pid))
