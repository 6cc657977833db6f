"""Where weights, KV cache and activations lie, and how rows are grouped; it knows no model and no machine."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

from flexref.errors import PolicyError
from flexref.files import read_object
from flexref.json_types.containers import ReadBy
from flexref.json_types.objects import JsonField, JsonObject, check_fields, object_of
from flexref.json_types.values import Number, OneOf, Whole
from flexref.units import TIERS, is_finite

WEIGHT_SCHEMES: Mapping[str, str] = MappingProxyType(
    {"none": "none", "int4": "int4", "int4-mse": "int4", "int4-calibrated": "int4", "int8": "int8"}
)
"""How weights may be stored, and the layout in which a port then reads them: schemes of one layout differ in how their
codes, scales and zeros were found, and not in where they lie."""

CACHE_SCHEMES = ("none", "int4")
"""How a cache may be stored: as it is computed, or in 4-bit groups."""

SHARE_ROUNDING = 1e-9
"""Shares come from decimal text and from a linear program: sums this close to 1 are meant to be 1."""


@dataclass(frozen=True, slots=True)
class Shares:
    """How much of one kind of data lies on each tier; each share is in [0, 1] and they sum to 1."""

    device: float = 1.0
    host: float = 0.0
    disk: float = 0.0

    def __post_init__(self) -> None:
        for tier in TIERS:
            share = getattr(self, tier)
            if not is_finite(share):
                raise PolicyError(f"share on {tier} must be a number in [0, 1], found {share!r}")
            if not -SHARE_ROUNDING <= share <= 1 + SHARE_ROUNDING:
                raise PolicyError(f"share on {tier} must lie in [0, 1], found {share}")
            nearest = round(float(share))  # what rounding left of nothing, or took from all, is neither
            snapped = float(nearest) if abs(share - nearest) <= SHARE_ROUNDING else float(share)
            object.__setattr__(self, tier, snapped)
        total = self.device + self.host + self.disk
        if abs(total - 1) > 4 * SHARE_ROUNDING:
            raise PolicyError(
                f"shares must sum to 1, found {total:g} "
                f"(device {self.device:g}, host {self.host:g}, disk {self.disk:g})"
            )

    @classmethod
    def of(cls, device: float, host: float) -> "Shares":
        """The shares with `device` and `host` given and the rest on disk."""
        if device + host > 1 + SHARE_ROUNDING:
            raise PolicyError(f"shares on device ({device:g}) and host ({host:g}) must not exceed 1 together")
        return cls(device, host, max(0.0, 1 - device - host))


PLACES = ("device", "host")
"""Where attention may be computed."""

COUNT = Whole(1, said="a positive integer")

SHARE = ReadBy(Number(0, 1), lambda what, share: share)
"""`Shares` checks them itself: it knows what rounding may leave."""

THREE = JsonObject(
    "Shares",
    "How much of one kind of data lies on each tier; together they are 1.",
    {tier: JsonField(SHARE, f"The share on tier {tier}.", 0.0) for tier in TIERS},
    Shares,
    "an object with device, host and disk",
)


@dataclass(frozen=True, slots=True)
class Policy:
    """One answer to "what lies where, and how many rows at a time" (FlexGen, section 4.3).

    A block is `groups_per_block` groups of `rows_per_group` rows; a layer's weights are fetched once per block and
    pass. `row_invariant` asks for tokens and logits that depend on a row alone, to the bit, which may cost some speed;
    `Stats` says whether the port gave them. `weights_scheme` is the scheme for which the policy was made, None if it
    holds for any. `attention_on` is where decode attention over a cache that is not on the device is computed; with
    "host", `host_attention_share` of a group's rows of that kind are attended to there, those whose home is the host
    first, and the others' caches cross the link. Which of them a row is belongs to its place, for as long as it has
    one: where a row's attention runs is part of the row's policy, and on a port whose processors round differently its
    tokens may depend on it, as they do on how its cache is stored.
    `read_ahead_gib` bounds the host memory in which weights from disk wait until they are loaded; there are places for
    two stages in any case.
    """

    weights: Annotated[Shares, THREE, "How much of the weights lies on each tier."] = field(default_factory=Shares)
    cache: Annotated[Shares, THREE, "How much of the KV cache lies on each tier."] = field(default_factory=Shares)
    activations: Annotated[Shares, THREE, "How much of the hidden states between layers lies on each tier."] = field(
        default_factory=Shares
    )
    rows_per_group: Annotated[int, COUNT, "Rows that are computed together."] = 16
    groups_per_block: Annotated[int, COUNT, "Groups that one fetch of a layer's weights serves."] = 1
    overlap: Annotated[bool, "Whether copies go on while the device computes."] = True
    row_invariant: Annotated[
        bool, "Whether a row's results have bits of their own, whatever rows are beside it, on ports that can do that."
    ] = True
    attention_on: Annotated[str, OneOf(PLACES), "Where decode attention over a cache off the device is computed."] = (
        "device"
    )
    host_attention_share: Annotated[
        float,
        Number(0, 1),
        "With attention on the host: of the rows whose cache is off the device, so many are attended to there; the "
        "others' caches cross the link.",
    ] = 1.0
    weights_scheme: Annotated[
        str | None, OneOf(tuple(WEIGHT_SCHEMES)), "How weights are stored for which this was planned; null: any."
    ] = None
    cache_scheme: Annotated[str, OneOf(CACHE_SCHEMES), "How the cache is stored: as computed, or in groups."] = "none"
    cache_group_size: Annotated[int, COUNT, "Values of the cache that share a scale and a zero, if in groups."] = 64
    share_prefixes: Annotated[
        bool, "Whether the beginnings that prompts have in common are read and kept once, where the port can."
    ] = True
    prompt_chunk_tokens: Annotated[
        int | None, COUNT, "Tokens of a prompt that one pass reads at most; null: whole prompts where they fit."
    ] = None
    read_ahead_gib: Annotated[
        float | None,
        Number(0),
        "Host memory for weights that are read from disk early; null: chosen.",
    ] = None

    def __post_init__(self) -> None:
        check_fields(self, PolicyError)
        if self.attention_on != "host" and self.host_attention_share != 1:
            raise PolicyError(
                f"host_attention_share {self.host_attention_share:g} needs attention_on host (--attention-on host), "
                f"found {self.attention_on}"
            )

    @property
    def rows_per_block(self) -> int:
        """Rows that one fetch of a layer serves."""
        return self.rows_per_group * self.groups_per_block

    @property
    def cache_groups_of(self) -> int | None:
        """Values of the cache that share a scale and a zero; None where it is stored as computed."""
        return None if self.cache_scheme == "none" else self.cache_group_size

    @property
    def shares_prefixes(self) -> bool:
        """Whether rows may share what they begin with: attention reads it on the device alone."""
        return self.share_prefixes and self.attention_on == "device"

    @property
    def shares_attention(self) -> float:
        """The share of rows off the device for which attention runs on the host."""
        return self.host_attention_share if self.attention_on == "host" else 0.0

    @property
    def attention_in_words(self) -> str:
        """Where decode attention over caches off the device is computed."""
        if self.attention_on == "device" or self.host_attention_share == 1:
            return self.attention_on
        return f"{self.attention_on} for {100 * self.host_attention_share:.6g} % of rows off the device"

    @property
    def in_short(self) -> str:
        """What lies where in percent of device, host and disk, and how many rows are computed together, in a line."""
        kinds = {"weights": self.weights, "cache": self.cache, "activations": self.activations}
        shares = (
            f"{kind} {'/'.join(f'{100 * share:.3g}' for share in (held.device, held.host, held.disk))}"
            for kind, held in kinds.items()
        )
        rows = f"{self.groups_per_block} x {self.rows_per_group} rows"
        company = "" if self.row_invariant else ", rows without bits of their own"
        return f"{', '.join(shares)} % on device/host/disk, {rows}, attention on {self.attention_in_words}{company}"

    def changed(self, **changes: Any) -> "Policy":
        """This policy with some fields replaced."""
        return replace(self, **changes)

    @classmethod
    def from_percent(cls, percent: Sequence[float], **rest: Any) -> "Policy":
        """From FlexGen's six numbers: weights, cache, activations, each on device and on host in percent."""
        if len(percent) != 6:
            raise PolicyError(
                f"percent needs six numbers (weights, cache, activations on device and host), found {len(percent)}"
            )
        shares = [Shares.of(percent[at] / 100, percent[at + 1] / 100) for at in (0, 2, 4)]
        return cls(weights=shares[0], cache=shares[1], activations=shares[2], **rest)

    def to_json(self) -> str:
        """The policy as a JSON object, the form in which it goes from one command to the next."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "Policy":
        """The policy that a parsed JSON object describes; `PolicyError` names an unknown or ill-typed field."""
        return cls(**object_of(cls).read_members("", values, PolicyError, "policy field"))

    @classmethod
    def read(cls, path: str | Path) -> "Policy":
        """The policy in the JSON file `path`: the object itself, or a planner's report that holds it as `policy`."""
        values = read_object(path, PolicyError, what="policy ")
        inner = values.get("policy")
        return cls.from_mapping(inner if isinstance(inner, dict) else values)


class Asked(NamedTuple):
    """What a user asks of a run: `policy`, None if one is to be chosen, which must `keep` some fields; `budgets`.

    Budgets are named as `flexref.load` names them.
    """

    policy: Policy | None
    keep: dict[str, Any]
    budgets: dict[str, Any]


FIELDS = MappingProxyType(
    {
        "rows_per_group": "rows_per_group",
        "groups": "groups_per_block",
        "attention_on": "attention_on",
        "overlap": "overlap",
        "row_invariant": "row_invariant",
        "share_prefixes": "share_prefixes",
        "read_ahead_gib": "read_ahead_gib",
    }
)
"""The fields of a policy by the names of the options that set them."""

BUDGETS = ("device_mem_gib", "host_mem_gib", "disk_dir")


def asked(options: Mapping[str, Any]) -> Asked:
    """What options ask for, by their names; one that is missing, or None, asks for nothing.

    `policy` is a file and `percent` six numbers, of which one may be given. Raises `PolicyError` for what no policy
    allows, before a file is read, and what `Policy.read` and `Policy.from_percent` raise.
    """
    named = {field: options.get(option) for option, field in FIELDS.items()}
    given = {field: value for field, value in named.items() if value is not None}
    if options.get("quantize_cache"):
        given["cache_scheme"] = "int4"
    percent = options.get("host_attention_percent")
    if percent is not None:
        given["host_attention_share"] = percent / 100
    # A file that is yet to be read may say that attention runs on the host.
    said = {"attention_on": "device" if options.get("policy") is None else "host", **given}
    if percent is not None and said["attention_on"] != "host":
        raise PolicyError(
            f"{percent:g} % of attention on the host needs --attention-on host, found {said['attention_on']}"
        )
    Policy().changed(**said)
    budgets = {name: options.get(name) for name in BUDGETS}
    if options.get("policy") is not None:
        if given.get("attention_on") == "device":  # for all rows, whatever the file says
            given["host_attention_share"] = 1.0
        return Asked(Policy.read(options["policy"]).changed(**given), {}, budgets)
    if options.get("percent"):
        return Asked(Policy.from_percent(options["percent"], **given), {}, budgets)
    return Asked(None, given, budgets)
