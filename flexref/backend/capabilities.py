"""What a port can do, and what it runs on: what it says of itself; it knows no operator and no memory."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a port can do; the engine asks for these and never for a port's name.

    compute_dtype: type of activations and of an unquantized cache. computes: False for a port that only counts.
    overlaps_copies: whether lanes run while operators do. attends_on_host: whether `append` and `attend` also work on
    host memory, and then from the thread of one lane too, beside all that the caller's own thread calls meanwhile: they
    take nothing from the workspace, and their bits are the same. scratch_bytes: device memory that operators use
    internally, whatever their shapes; 0: none. fused_rows: for at most so many tokens `linear` reads codes directly;
    for more it is faster to `expand` first. 0: for any number, and where there is room matrices are kept expanded.
    one_memory: device memory is host memory, and one processor works on both, so that nothing is faster on the host
    than on the device. row_invariant: a row's results have bits of its own, whatever rows are beside it and in how many
    pieces its tokens come, unless `Backend.keep_rows_apart` says that they need not. shares_prefixes: `cache_rows`
    takes `prefixes`. recorded_bytes: how much of the scratch is for recordings, all together; 0: the port records
    nothing. recording_bytes, recorded_call_bytes: what of that one recording counts for, and about what each operator
    in it; 0: not known, and any number of them is predicted to fit. lacks_on_host: what a port that does not attend on
    the host would need for it, and how to get it, in words.
    """

    compute_dtype: str
    computes: bool
    overlaps_copies: bool
    attends_on_host: bool
    scratch_bytes: int
    fused_rows: int
    one_memory: bool = False
    row_invariant: bool = False
    shares_prefixes: bool = False
    recorded_bytes: int = 0
    recording_bytes: int = 0
    recorded_call_bytes: int = 0
    lacks_on_host: str = ""

    @property
    def replays(self) -> bool:
        """Whether operators can be recorded and replayed."""
        return self.recorded_bytes > 0


@dataclass(frozen=True, slots=True)
class Description:
    """What a port runs on: for reports, and to tell one machine from another.

    devices: those that the port sees beside the host's processor, each by its name and what else tells it from others.
    versions: by name, of the libraries whose exchange may change figures.
    """

    devices: tuple[str, ...]
    versions: Mapping[str, str]
