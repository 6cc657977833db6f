"""Which passes of a job are simulated, and what all of them take from what those took; it runs nothing.

Where rows change seldom, both ends and the middle of every stretch of passes with the same rows are simulated, and the
others are interpolated linearly: seconds are as good as they are proportional to bytes. Where that would be more than
`PASSES_MOST` passes, as many are drawn, evenly by what a pass feeds and finds, from each kind of pass (those that only
read, those that also read, those that do not), and a line through them (seconds over tokens, records and rows) gives
the others. What the line does not follow has a mean of 0 over the drawn passes, and so about 0 over all of them: on
ragged jobs of hundreds of passes the whole is within 2 % of simulating every pass.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from flexref.machine.arrays import Numbers
from flexref.simulator.job_walk import Walk
from flexref.simulator.pass_account import PassAccount

ENDS = 2
"""So many passes are simulated at both ends of a stretch of passes with the same rows, and of a job: near an end, what
is loaded ahead belongs to a pass with other rows."""

RECORDED_FROM = 5
"""Where operators are recorded so many passes are simulated at a beginning: what comes again in every pass, or in every
other one, where slots take turns, is called the first time, recorded the second time, and replayed from then on."""

PASSES_MOST = 72
"""About so many passes are simulated: with as many the mean of what a line does not follow is well below 1 %."""

DRAWN_LEAST = 8
"""So many at least are drawn from each kind of passes that has as many."""

DRAWN_BY_TERM = 4
"""A line has one term for so many drawn passes, and the constant."""


def simulated_passes(walk: Walk, whole: int = 0, beginning: int = ENDS) -> list[int]:
    """The numbers of the passes to simulate, in order; the first `whole` ones are among them.

    beginning: how many are simulated at the beginning of a stretch.
    """
    stretches = [number for stretch in walk.stretches() for number in ends_and_middle(stretch, beginning)]
    some = stretches if len(stretches) <= PASSES_MOST else drawn_passes(walk, max(whole, beginning))
    return sorted({*some, *range(min(whole, walk.passes))})


def ends_and_middle(stretch: range, beginning: int = ENDS) -> Sequence[int]:
    """Those of a stretch that are simulated."""
    if len(stretch) <= beginning + ENDS + 1:
        return stretch
    return [*stretch[:beginning], stretch[(len(stretch) + beginning - ENDS) // 2], *stretch[-ENDS:]]


def drawn_passes(walk: Walk, whole: int) -> list[int]:
    """Both ends of the job, and passes of every kind, as many as the kind has beside the others."""
    chosen = {*_ends(walk, whole)}
    kinds, load = _kinds(walk, whole), _terms(walk)[:, 1]
    left = max(1, walk.passes - len(chosen))
    for kind in kinds:
        count = min(len(kind), max(DRAWN_LEAST, round(PASSES_MOST * len(kind) / left)))
        places = (2 * np.arange(count) + 1) * len(kind) // (2 * count)
        chosen.update(kind[np.argsort(load[kind], kind="stable")][places].tolist())
    return sorted(chosen)


def estimated(
    walk: Walk, accounts: Mapping[int, PassAccount], whole: int = 0, beginning: int = ENDS
) -> tuple[PassAccount, PassAccount]:
    """(passes that only read, all others) of the whole job, from the accounts of `simulated_passes` of the same."""
    reads = walk.column("generated") == 0
    totals = PassAccount.nothing(), PassAccount.nothing()
    stretches = walk.stretches()
    if all(number in accounts for stretch in stretches for number in ends_and_middle(stretch, beginning)):
        for stretch in stretches:
            known = {number: accounts[number] for number in stretch if number in accounts}
            totals[0 if reads[stretch[0]] else 1].add(interpolated(known))
        return totals
    whole = max(whole, beginning)
    for number in _ends(walk, whole):
        totals[0 if reads[number] else 1].add(accounts[number])
    for kind in _kinds(walk, whole):
        totals[0 if reads[kind[0]] else 1].add(_followed(_terms(walk), kind, accounts))
    return totals


def interpolated(accounts: Mapping[int, PassAccount]) -> PassAccount:
    """The sum over all passes from the first to the last; those that were not simulated are interpolated linearly."""
    total = PassAccount.nothing()
    known = sorted(accounts)
    for number, after in zip(known, [*known[1:], known[-1] + 1], strict=True):
        total.add(accounts[number])
        between = after - number - 1
        if between:
            total.add(accounts[number], between / 2)
            total.add(accounts[after], between / 2)
    return total


def _ends(walk: Walk, whole: int) -> list[int]:
    """Both ends of a job, which are simulated in any case, and its first `whole` passes."""
    return sorted({*range(min(max(ENDS, whole), walk.passes)), *range(max(0, walk.passes - ENDS), walk.passes)})


def _kinds(walk: Walk, whole: int) -> list[npt.NDArray[np.int64]]:
    """The numbers of the passes between the ends of a job, by kind; kinds without one are left out."""
    generates, reads = walk.column("generated") > 0, walk.column("read") > 0
    between = np.ones(walk.passes, np.bool_)
    between[_ends(walk, whole)] = False
    kinds = [np.flatnonzero(between & kind) for kind in (~generates, generates & reads, generates & ~reads)]
    return [kind for kind in kinds if len(kind)]


def _terms(walk: Walk) -> Numbers:
    """(P, 5) what the seconds of a pass are a line over, the most telling first; each is 1 on average.

    A constant, all together, tokens, records that come to the device, rows.
    """
    columns = (
        walk.column("read") + walk.column("generated"),
        walk.column("past_on_host") + walk.column("past_on_disk"),
        walk.column("past_on_device"),
        walk.column("rows"),
    )
    parts = np.stack([column / max(column.mean(), 1e-9) for column in columns])
    load = parts[:3].sum(axis=0)
    return np.stack([np.ones(walk.passes), load / load.mean(), parts[0], parts[1], parts[3]], axis=1)


def _followed(terms: Numbers, kind: npt.NDArray[np.int64], accounts: Mapping[int, PassAccount]) -> PassAccount:
    """What all passes of a kind take, from those of them that were simulated."""
    drawn = [number for number in kind.tolist() if number in accounts]
    some = terms[:, : 1 + len(drawn) // DRAWN_BY_TERM]
    flows = sorted({key for number in drawn for key in accounts[number].flow_s})
    lanes = sorted({key for number in drawn for key in accounts[number].busy_s})
    took = np.array(
        [
            [account.seconds, *(account.flow_s[key] for key in flows), *(account.busy_s[key] for key in lanes)]
            for account in (accounts[number] for number in drawn)
        ]
    )
    line = np.linalg.lstsq(some[drawn], took, rcond=1e-9)[0]
    rest = np.setdiff1d(kind, drawn)
    seconds, *others = (took.sum(axis=0) + np.maximum(0.0, some[rest].sum(axis=0) @ line)).tolist()
    total = PassAccount.nothing()
    total.seconds = seconds
    total.flow_s.update(dict(zip(flows, others, strict=False)))
    total.busy_s.update(dict(zip(lanes, others[len(flows) :], strict=True)))
    return total
