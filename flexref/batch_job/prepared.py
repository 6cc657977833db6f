"""A job made ready: its model and input are read and checked, its files and engines are known; nothing runs yet."""

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from flexref.backend.protocol import Backend
from flexref.backend.registry import create
from flexref.batch_job.answers import Line, LineAnswer
from flexref.batch_job.engines import Engines
from flexref.batch_job.identity import Identity, arithmetic_facts, model_facts
from flexref.batch_job.input_file import Scan, read_lines, scan
from flexref.batch_job.job import BatchJob
from flexref.batch_job.job_files import JobFiles
from flexref.batch_job.journal.line_facts import ExpectedLines
from flexref.batch_job.lines.asked_line import AskedLine
from flexref.batch_job.lines.defaults import Defaults
from flexref.batch_job.lines.prompt_tokens import ServedModel, served_model
from flexref.batch_job.recorder import Recorder
from flexref.batch_job.request_lines import RequestReader
from flexref.batch_job.shard import WHOLE, Shard
from flexref.batch_job.states import JobFacts, Watcher
from flexref.batch_job.stream_recorder import StreamRecorder
from flexref.engine.events import OnEvent, no_listener
from flexref.engine.own_bits import attends_elsewhere
from flexref.errors import PolicyError
from flexref.loading import advisor
from flexref.machine.machine import Machine
from flexref.planner.advisor import Advisor
from flexref.policy import Asked, Policy, Shares
from flexref.storage.names import resolve
from flexref.text.tokenizer import Tokenizer
from flexref.tiers.mirror import open_either

LOG = logging.getLogger(__name__)

ANSWER_FORMAT = 4
"""Of the lines of OUT and ERR: another one makes another job of the same input."""

NOTHING_ASKED = Asked(None, {}, {})

PLACE_OPTIONS = ("device",)
"""Options of ports that say which device computes: what it is stands in the arithmetic, its number changes nothing."""


@dataclass(frozen=True)
class JobSettings:
    """What is asked of a job, but for its input and output. `asked`: policy, what to keep of a chosen one, budgets.

    `mirror`: a copy of the model's file, read where that fails.
    """

    model: str | Path
    backend: str = "numpy"
    asked: Asked = NOTHING_ASKED
    machine: str | None = None
    defaults: Defaults = field(default_factory=Defaults)
    shard: Shard = WHOLE
    mirror: str | Path | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """Further ones of `open_engine`."""
    graphs: bool = True
    """Whether what comes again is replayed: answers are the same, so that a job may go on with or without."""

    @property
    def keep(self) -> dict[str, Any]:
        """Fields that every policy of the job has, whichever engine, run or worker it is chosen for.

        Attention is computed in one place: on some ports another one has other bits.
        """
        return {"attention_on": "device", **self.asked.keep}

    def check_own_bits(self, backend: Backend) -> None:
        """`PolicyError` if answers may depend on which rows are beside each other although the port could do without.

        A run that goes on after another has other rows beside each other: its bytes would not be those of one run.
        Whoever asks for no bits of their own has accepted that.
        """
        asked, unknown = self.asked.policy, Policy(cache=Shares(0, 1))
        policy = unknown.changed(**self.keep) if asked is None else asked
        if policy.row_invariant and backend.caps.row_invariant and attends_elsewhere(policy, backend.caps):
            raise PolicyError(
                f"{backend.name} rounds otherwise where attention runs on the host, and for which lines it does may "
                "change when the job goes on after an interruption, and so may their answers: compute it on the device "
                "(--attention-on device), or accept that (--no-row-invariant)"
            )

    @property
    def identity(self) -> dict[str, Any]:
        """Every setting that can change a token or a byte of an answer, by name."""
        asked = Policy().changed(**self.keep) if self.asked.policy is None else self.asked.policy
        return {
            **{name: list(value) if name == "stops" else value for name, value in asdict(self.defaults).items()},
            "backend": self.backend,
            **{f"option {name}": value for name, value in self._plain_options},
            "cache scheme": asked.cache_scheme,
            "cache group size": asked.cache_groups_of,
            "attention on": asked.attention_in_words,
            "row invariant": asked.row_invariant,
            "shard": self.shard.in_words,
            "answer format": ANSWER_FORMAT,
        }

    @property
    def _plain_options(self) -> Iterator[tuple[str, Any]]:
        """The port's options by name; one that is no plain value is known by its type."""
        for name, value in sorted(self.options.items()):
            if name not in PLACE_OPTIONS:
                yield name, value if isinstance(value, int | float | str) else type(value).__name__


class Prepared:
    """A model that is open, and requests that can be read for it."""

    def __init__(self, settings: JobSettings) -> None:
        """Raises what opening the model, the port and the policy raise."""
        self.settings = settings
        self.settling: Advisor = advisor(settings.asked.policy, settings.machine, settings.keep)
        self.file, self._mirror = open_either(resolve(settings.model), settings.mirror, LOG.warning)

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The model's own, made once for requests and for all engines: a large one takes half a second."""
        return Tokenizer.if_any(self.file.tokenizer_json, self.file.path)

    @cached_property
    def model(self) -> ServedModel:
        """The model as a reader of requests sees it."""
        return served_model(self.file.spec, self.tokenizer)

    def reader(self, *, as_json: bool) -> RequestReader:
        """Reads lines as requests."""
        return RequestReader(self.model, self.settings.defaults, as_json=as_json)

    def engines(self, on_event: OnEvent = no_listener) -> Engines:
        """Opens the job's engines."""
        settings = self.settings
        budgets = {name: value for name, value in settings.asked.budgets.items() if value is not None}
        options = {**settings.options, "tokenizer": self.tokenizer, "graphs": settings.graphs}
        return Engines(self.file, self.settling, settings.backend, budgets, options, on_event, self._mirror)

    @cached_property
    def port(self) -> "PortFacts":
        """What is known of the port that computes. Raises what opening it raises, and `check_own_bits`."""
        disk_dir = self.settings.asked.budgets.get("disk_dir") or tempfile.gettempdir()
        with closing(create(self.settings.backend, **self.settings.options)) as port:
            self.settings.check_own_bits(port)
            self.settling.machines.check(port)
            return PortFacts(arithmetic_facts(port), self.settling.machines.kept(port, Path(disk_dir)))

    def computed_by(self, arithmetic: Mapping[str, Any]) -> None:
        """Not this process computes, but something of which this is known; its port is not looked for here."""
        self.port = PortFacts(arithmetic, None)


@dataclass(frozen=True, slots=True)
class PortFacts:
    """What computes, as far as it may change bits, and the machine that it runs on, if that is known."""

    arithmetic: Mapping[str, Any]
    machine: Machine | None


class PreparedFile:
    """A job whose input is a file: it is durable, and goes on where it was."""

    def __init__(self, prepared: Prepared, path: Path | str) -> None:
        """Looks over the input once; `StorageError` if it cannot be read."""
        self.prepared, self.scan = prepared, scan(path)

    @property
    def reader(self) -> RequestReader:
        """Reads its lines as requests."""
        return self.prepared.reader(as_json=self.scan.as_json)

    @cached_property
    def expected(self) -> ExpectedLines:
        """The lines that this job answers."""
        return ExpectedLines(self.scan.filled, self.scan.hashes, self.prepared.settings.shard)

    @property
    def identity(self) -> Identity:
        """What makes another run one of the same job."""
        scanned: Scan = self.scan
        facts = {"lines": scanned.lines, "bytes": scanned.size_bytes, "digest": scanned.digest}
        prepared = self.prepared
        return Identity(facts, model_facts(prepared.file), prepared.settings.identity, prepared.port.arithmetic)

    def recorder(self, files: JobFiles, *, force: bool = False, accept_arithmetic: bool = False) -> Recorder:
        """Opens the journal and the outputs; raises what `Recorder.open` raises."""
        return Recorder.open(files, self.identity, self.expected, force=force, accept_arithmetic=accept_arithmetic)

    def lines(self, recorder: Recorder) -> Iterator[AskedLine | LineAnswer]:
        """The lines that are not answered yet, as requests or, where they cannot be served, as answers."""
        left = (number for number in self.expected if not recorder.is_done(number))
        return requests(read_lines(self.scan, left), self.reader)

    def facts(self, recorder: Recorder, files: JobFiles, usd_per_hour: float | None = None) -> JobFacts:
        """What is known of the job before its first pass."""
        prepared = self.prepared
        return JobFacts(
            prepared.file.spec.name,
            prepared.settings.backend,
            Policy(),
            str(self.scan.path),
            str(files.output),
            len(self.expected),
            recorder.done_lines,
            recorder.runs_before,
            usd_per_hour=usd_per_hour,
        )


class PreparedStream:
    """A job whose input comes as a stream, or whose output goes to one: nothing of it is durable.

    `lines` as they come, JSON objects or not.
    """

    def __init__(self, prepared: Prepared, lines: Iterable[Line], recorder: StreamRecorder, *, as_json: bool) -> None:
        self._prepared, self._lines, self._recorder, self._as_json = prepared, lines, recorder, as_json

    def job(self, source: str, output: str, watchers: Sequence[Watcher] = ()) -> BatchJob:
        """The job, which calls its input and output so."""
        prepared = self._prepared
        facts = JobFacts(prepared.file.spec.name, prepared.settings.backend, Policy(), source, output, None)
        lines = requests(self._expected(), prepared.reader(as_json=self._as_json))
        return BatchJob(prepared.engines(), lines, self._recorder, facts, watchers)

    def _expected(self) -> Iterator[Line]:
        for line in self._lines:
            if not line.blank:
                self._recorder.expect(line.number)
            yield line


def requests(lines: Iterable[Line], reader: RequestReader) -> Iterator[AskedLine | LineAnswer]:
    """Lines read as requests, but for blank ones."""
    for line in lines:
        read = reader.read(line)
        if read is not None:
            yield read
