"""Lines are answered on workers that are killed, fail and are given up, by servers that only pretend to compute."""

import os
import pickle
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import pytest

from flexref.batch_job.answers import Line, LineAnswer
from flexref.batch_job.cluster.leases import Leases
from flexref.batch_job.cluster.local import check_scheduler, connected
from flexref.batch_job.cluster.local_workers import rotated, visible_devices
from flexref.batch_job.cluster.serve_on_cluster import ClusterServing
from flexref.batch_job.cluster.worker import WarmServer
from flexref.errors import BatchError, EngineError, WrongCall

NO_STOP = bool
"""Says no."""


class Pretender:
    """Answers with a line's bytes, `seconds` for each; lines may say that the engine fails, or never end."""

    def __init__(self, log: Path, seconds: float = 0.0) -> None:
        self.log, self.seconds = log, seconds
        self.note("opened")

    def note(self, what: str) -> None:
        with self.log.open("a") as log:
            log.write(f"{what} {os.getpid()}\n")

    def answers(self, lines: Sequence[Line], on_pass: Callable[[], None]) -> Iterator[LineAnswer]:
        for line in reversed(lines):
            time.sleep(self.seconds)
            on_pass()
            if line.data == b"fails":
                raise EngineError("the device is gone")
            while line.data == b"endless":
                time.sleep(0.01)
                on_pass()
            yield LineAnswer(line.number, None, 0, False, line.data)

    def close(self) -> None:
        self.note("closed")


@pytest.fixture(scope="module", autouse=True)
def classes_go_whole() -> Iterator[None]:
    """Workers do not find this file: what it defines is sent to them."""
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    yield
    cloudpickle.unregister_pickle_by_value(module)


class Cluster:
    """Runs lines on the workers of `client` and keeps what is said."""

    def __init__(self, client: Any, log: Path) -> None:
        self.client, self.log, self.said = client, log, list[str]()

    def serving(self, lines: Sequence[Line], seconds: float = 0.0, most: int = 20) -> ClusterServing:
        leases, log = Leases(lines, len(lines), most_lines=most), self.log
        return ClusterServing(
            self.client,
            lambda: Pretender(log, seconds),
            leases,
            lambda kind, text: self.said.append(f"{kind}: {text}"),
        )

    def noted(self, what: str) -> list[str]:
        """Processes in which a server was opened or closed."""
        return [line.split()[1] for line in self.log.read_text().splitlines() if line.startswith(what)]


@pytest.fixture
def cluster(client: Any, tmp_path: Path) -> Cluster:
    return Cluster(client, tmp_path / "log")


def lines_of(count: int) -> list[Line]:
    return [Line(number, b"%d" % number) for number in range(1, count + 1)]


def test_every_line_is_answered_on_engines_that_stay_open_and_are_closed_in_the_end(cluster: Cluster) -> None:
    answers = [answer for answer in cluster.serving(lines_of(300)).run(NO_STOP) if answer]
    assert sorted((answer.number, answer.data) for answer in answers) == [(n, b"%d" % n) for n in range(1, 301)]
    opened = cluster.noted("opened")
    assert len(opened) == len(set(opened)) == 3
    while sorted(cluster.noted("closed")) != sorted(opened):
        time.sleep(0.01)


def test_a_job_that_stops_gives_what_it_has_and_the_workers_are_free_for_the_next_one(cluster: Cluster) -> None:
    lines = [*lines_of(200), *(Line(number, b"endless") for number in range(201, 300))]
    answers: list[LineAnswer] = []

    def is_stopping() -> bool:
        return len(answers) == 200

    for answer in cluster.serving(lines, most=1).run(is_stopping):
        answers += [answer] if answer else []
    assert len(answers) == 200
    assert len([answer for answer in cluster.serving(lines_of(60)).run(NO_STOP) if answer]) == 60


def test_a_chunk_that_was_given_up_never_counts_as_answered(tmp_path: Path) -> None:
    warm = WarmServer(Pretender(tmp_path / "log"))
    assert len(warm.serve(lines_of(3), lambda: True).answers) == 3
    given_up = warm.serve(lines_of(3), lambda: False)
    assert given_up.answers == ()
    assert given_up.failure == "it was given up"


def test_an_engine_never_leaves_its_worker(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="an engine stays on its worker"):
        pickle.dumps(WarmServer(Pretender(tmp_path / "log")))


def test_an_engine_that_fails_is_opened_anew_elsewhere_and_the_third_failure_ends_the_job(cluster: Cluster) -> None:
    lines = [*lines_of(50), Line(51, b"fails")]
    with pytest.raises(BatchError, match=r"the device is gone \(the last of 3 attempts, on worker tcp://"):
        list(cluster.serving(lines).run(NO_STOP))
    assert sum("the device is gone" in said for said in cluster.said) == 3
    assert len(cluster.noted("opened")) >= 3


def test_workers_that_are_killed_at_random_moments_lose_nothing(cluster: Cluster) -> None:
    answers: list[LineAnswer] = []
    chance = random.Random(15)
    kills, next_kill = 0, 20
    for answer in cluster.serving(lines_of(600), 0.004, 10).run(NO_STOP):
        answers += [answer] if answer else []
        if len(answers) >= next_kill and kills < 5:
            workers = list(cluster.client.run(os.getpid, on_error="ignore").values())
            if workers:
                os.kill(chance.choice(workers), signal.SIGKILL)
                kills, next_kill = kills + 1, len(answers) + chance.randrange(20, 120)
    # How many there are, and whether the last one is noticed, depends on how fast the machine is.
    assert kills >= 2
    assert kills - 1 <= sum(" is lost" in said for said in cluster.said) <= kills
    assert sorted((answer.number, answer.data) for answer in answers) == [(n, b"%d" % n) for n in range(1, 601)]


@pytest.mark.parametrize("scheduler", ["local", "local:0", "local:x", "10.0.0.1:8786", "", "http://here"])
def test_what_names_no_scheduler_is_a_wrong_call(scheduler: str) -> None:
    with pytest.raises(WrongCall, match=r"--scheduler must be an address such as tcp://"):
        check_scheduler(scheduler)


def test_a_scheduler_that_is_not_there_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flexref.batch_job.cluster.local.CONNECT_S", 0.2)
    with pytest.raises(BatchError, match=r"cannot reach the Dask scheduler tcp://127.0.0.1:9: [^\n]+$"):
        connected("tcp://127.0.0.1:9").__enter__()


def test_without_dask_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(BatchError, match=r"--scheduler needs Dask: pip install '.\[dask\]'"):
        connected("local:1").__enter__()


def test_every_worker_here_has_a_device_of_its_own_first(tmp_path: Path) -> None:
    assert visible_devices({"CUDA_VISIBLE_DEVICES": "4,7"}, tmp_path) == ["4", "7"]
    assert visible_devices({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == []
    assert visible_devices({}, tmp_path / "no driver") == []
    for device in ("a", "b", "c"):
        (tmp_path / device).mkdir()
    assert visible_devices({}, tmp_path) == ["0", "1", "2"]
    assert [rotated(["4", "7"], number) for number in range(3)] == [["4", "7"], ["7", "4"], ["4", "7"]]


class LostClient:
    """A client whose scheduler has gone."""

    status = "closed"
    scheduler = SimpleNamespace(address="tcp://10.0.0.1:8786")


def test_a_scheduler_that_is_lost_ends_the_job_with_what_helps() -> None:
    client: Any = LostClient()
    serving = ClusterServing(client, lambda: Pretender(Path("unused")), Leases(lines_of(3)), print)
    said = "^the Dask scheduler tcp://10.0.0.1:8786 is lost; give the same command again when it is there$"
    with pytest.raises(BatchError, match=said):
        list(serving.run(NO_STOP))
