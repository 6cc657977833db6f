"""For tests of jobs on a cluster: one of three workers on this machine, which all of them share."""

from collections.abc import Iterator
from typing import Any

import pytest

from flexref.batch_job.cluster.local import connected


@pytest.fixture(scope="package")
def client() -> Iterator[Any]:
    """Of three workers here."""
    pytest.importorskip("distributed")
    with connected("local:3") as client:
        client.wait_for_workers(3)
        yield client
