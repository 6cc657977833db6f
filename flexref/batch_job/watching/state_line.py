"""Where a job stands in one line of plain text; it knows no terminal."""

from flexref.batch_job.watching.pace import Speed, View
from flexref.errors import duration, how_many

RATE_UNITS = ((1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s"))
"""Of bytes per second, the largest first."""


def state_line(view: View, now_s: float) -> str:
    """`123 of 1000 lines (2 failed), 51.2 tokens/s now, 49.8 over all, 20 s left, 59 of 64 places, compute 91 %, ...`.

    `now_s` is now on the clock of whoever keeps the view: the line tells how old all that is.
    """
    state, speed = view.state, view.speed()
    parts = [lines_said(view), f"{speed.tokens_per_s_now:.3g} tokens/s now, {speed.tokens_per_s:.3g} over all"]
    parts += [left_said(speed)] if speed.left_s is not None else []
    parts += [f"{state.live_rows} of {state.places} places"] if state.places else []
    parts += [f"{lane} {share:.0%}" for lane, share in sorted(speed.lane_shares.items())]
    parts += [link_said(speed, link) for link, rate in speed.link_bytes_per_s.items() if rate]
    parts += [how_many(state.faults, "fault")] if state.faults else []
    parts += [pass_said(view, now_s)]
    return f"{duration(view.at_s(now_s))}: {', '.join(parts)}"


def pass_said(view: View, now_s: float) -> str:
    """`pass 7 ended 3 s ago`, of a job whose passes are those of other processes `heard of 3 s ago`."""
    if view.state is view.start:
        return "no pass has ended yet"
    what = f"pass {view.state.passes} ended" if view.state.passes else "heard of"
    return f"{what} {duration(now_s - view.told_s)} ago"


def lines_said(view: View) -> str:
    """`123 of 1000 lines (2 failed)`."""
    state, lines = view.state, view.facts.lines
    of = "" if lines is None else f" of {lines}"
    failed = f" ({state.lines_failed} failed)" if state.lines_failed else ""
    return f"{state.lines_done}{of} lines{failed}"


def left_said(speed: Speed) -> str:
    """`20 s left`, `20 s left as predicted`; what is left must be known."""
    assert speed.left_s is not None
    return f"{duration(speed.left_s)} left{' as predicted' if speed.left_is_predicted else ''}"


def link_said(speed: Speed, link: str) -> str:
    """`disk->host 1.9 GB/s (95 %)`: its rate now, and the share that it is of the machine's."""
    share = f" ({speed.link_shares[link]:.0%})" if link in speed.link_shares else ""
    return f"{link} {rate_said(speed.link_bytes_per_s[link])}{share}"


def rate_said(bytes_per_s: float) -> str:
    """`1.9 GB/s`, in the largest decimal unit that keeps it at 1 or more."""
    for size, unit in RATE_UNITS:
        if bytes_per_s >= size:
            return f"{bytes_per_s / size:.3g} {unit}"
    return f"{bytes_per_s:.3g} B/s"
