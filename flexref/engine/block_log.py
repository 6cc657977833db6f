"""Logs where a job's blocks begin and end, with what they took; it computes nothing."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from flexref.block.planned_block import PlannedBlock
from flexref.engine.account import Account
from flexref.errors import in_gib
from flexref.tiers.transfer import Traffic

LOG = logging.getLogger(__name__)


@contextmanager
def logged(planned: PlannedBlock, account: Account, traffic: Traffic) -> Iterator[None]:
    """A block is at work meanwhile: its places are logged when it begins, seconds and bytes at its end."""
    name = f"block {account.stats.blocks + 1}"
    LOG.info("%s begins: places %d in groups %d", name, planned.places, planned.shape.groups)
    before, start_s = traffic.snapshot(), time.perf_counter()
    yield
    moved = {link: sum(kinds.values()) for link, kinds in traffic.since(before).items()}
    said = ", ".join(f"{link} {in_gib(nbytes)}" for link, nbytes in moved.items() if nbytes) or "nothing was moved"
    LOG.info("%s ends: %.2f s, %s", name, time.perf_counter() - start_s, said)
