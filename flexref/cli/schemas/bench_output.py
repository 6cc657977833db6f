"""The schema of what `flexref bench --json` prints, one object a line: figures, the floor, and what was run."""

from collections.abc import Iterator

from flexref.bench.breakdown import Breakdown
from flexref.bench.floor import BeatenFloor
from flexref.bench.rates import Rates
from flexref.bench.repeats import MeanInterval
from flexref.bench.suites import Arguments
from flexref.block.counted_rows import LengthsSummary
from flexref.check.run_tokens import TokensChecked
from flexref.cli.schemas.parts import COUNT, NAMES, PREDICTED, member, output, seconds
from flexref.engine.results import BYTES_BY_LINK, Stats
from flexref.json_types.containers import ListOf, MapOf
from flexref.json_types.objects import UNSAID, JsonField, JsonObject, object_of
from flexref.json_types.values import JsonType, Maybe, Number, OneOf, Text, Whole
from flexref.storage.schema import DTYPES, SCHEMES

FIGURES = {
    "prefill_s": seconds("Seconds of the prefill."),
    "decode_s": seconds("Seconds of all decode passes."),
    "decode_step_s": member(Maybe(Number(0)), "Seconds of one decode pass; null if there was none."),
    "tokens_per_s": member(Number(0), "Generated tokens over prefill and decode together."),
    "read_tokens_per_s": member(Number(0), "Tokens of prompts over prefill and decode together."),
}

RUN = ("wall_s", "lane_busy")
"""What is told of every run as its own account has it."""

TERMS = Maybe(MapOf(Number(0)))

FLOORS = {
    "floor_s": member(Maybe(Number(0)), "The least for prefill and decode; null if a run took less."),
    "floor_ratio": member(Maybe(Number(0)), "The median run over that floor; null if there is none."),
    "floor_terms_s": member(TERMS, "What each link, products and memory need, where rows differ; else null."),
    "prefill_floor_s": member(Maybe(Number(0)), "The least for the prefill; null where rows differ, or if beaten."),
    "prefill_floor_terms_s": member(TERMS, "What each link, products and memory need for it."),
    "decode_floor_s": member(Maybe(Number(0)), "The least for all decode passes; likewise."),
    "decode_floor_terms_s": member(TERMS, "What each link, products and memory need for them."),
    "decode_step_floor_s": member(Maybe(Number(0)), "The least for one decode pass; likewise."),
    "floors_beaten": member(
        ListOf(output("BeatenFloor", "A rate that was measured too low.", object_of(BeatenFloor).members)),
        "Which rates were wrong, where a run took less than its floor.",
    ),
}

MACHINE = output(
    "",
    "",
    {
        "cpu": member(Text(), "The processor."),
        "cpu_cores": member(Whole(1), "Cores that the process may use."),
        "memory_bytes": member(COUNT, "Bytes of memory."),
        "gpu": member(NAMES, "Names of the GPUs."),
        "link_gb_per_s": member(Maybe(Number(0)), "What links were slowed down to; null if they were not."),
    },
)

CHANGE = output(
    "Change",
    "A figure beside that of an earlier benchmark: medians over the runs of each.",
    {
        "figure": member(OneOf(tuple(FIGURES)), "Which figure."),
        "before": member(Number(0), "The earlier median."),
        "now": member(Number(0), "This one's median."),
        "least": member(Maybe(Number(0)), "The least ratio of one run to an earlier one; null where either ran once."),
        "most": member(Maybe(Number(0)), "The greatest such ratio."),
        "ratio": member(Number(0), "now over before."),
        "verdict": member(OneOf(("faster", "slower", "no change", "unknown")), "What least and most say."),
    },
)

BASELINE = output(
    "Baseline",
    "This benchmark beside an earlier one.",
    {
        "where": member(Text(), "The file and the line of the earlier one."),
        "figures": member(MapOf(CHANGE), "What has changed, by figure."),
        "differs": member(MapOf(ListOf(Text(), 2, 2)), "Versions and the policy's fields that differ: before, now."),
    },
)


def account() -> Iterator[tuple[str, JsonField]]:
    """What is repeated of the last run's account, and what is computed from it."""
    from flexref.bench.report import ACCOUNT

    stats = object_of(Stats).members
    yield from ((name, stats[name]) for name in ACCOUNT)
    yield "decode_link_bytes", member(BYTES_BY_LINK, "What of link_bytes was moved after the prefill.")
    yield from ((name, stats[name]) for name in ("allocate_s", "wall_s", "wall_begins", "wall_parts_s"))


def bench() -> JsonType:
    """One benchmark; one that was interrupted before a run had ended has no figures."""
    figures = {
        **FIGURES,
        **FLOORS,
        "tokens_per_s_interval": member(
            Maybe(output("MeanInterval", "Between what a mean lies.", object_of(MeanInterval).members)),
            "Between what the mean of the runs' tokens_per_s lies; null after one run.",
        ),
        **dict(account()),
        "breakdown": member(
            Maybe(output("Breakdown", "What seconds are made of.", object_of(Breakdown).members)),
            "What prefill and decode step are made of; null if it was not asked for, or rows differ.",
        ),
        "predicted": member(Maybe(PREDICTED), "What was predicted; null where no machine is known."),
    }
    run = output("Run", "One run.", {**FIGURES, **{name: object_of(Stats).members[name] for name in RUN}})
    members = {
        "suite": member(Maybe(Text()), "The suite that it is of; null if none."),
        **{name: JsonField(part.kind, part.about, UNSAID) for name, part in figures.items()},
        "arguments": member(
            output("Arguments", "What was asked for.", object_of(Arguments).members), "What was asked for."
        ),
        "model": member(Text(), "The model's name."),
        "weights": member(Text(), "The weight file, or random."),
        "weights_scheme": member(OneOf(SCHEMES), "How the weights are stored."),
        "weights_dtype": member(OneOf(DTYPES), "The type of what is not in groups."),
        "lengths": member(Maybe(object_of(LengthsSummary)), "The rows, where they differ; null if they do not."),
        "cut_short": member(Maybe(Text()), "What was interrupted; null if nothing."),
        "rates": member(output("Rates", "What this machine does at best.", object_of(Rates).members), "The machine."),
        "versions": member(MapOf(Text()), "Versions by name."),
        "machine": member(MACHINE, "What it ran on."),
        "runs": member(ListOf(run), "Every run that ended."),
        "check_logits": member(COUNT, "Logits that were checked before anything was timed."),
        "check_worst_share": member(Number(0), "The largest error among them, as a share of its bound."),
        "tokens_checked": member(
            Maybe(
                output("TokensChecked", "Tokens of the runs that were recomputed.", object_of(TokensChecked).members)
            ),
            "What was checked of the runs' own tokens; null if nothing.",
        ),
        "tokens_check_s": member(Number(0), "Seconds that it took."),
        "baseline": JsonField(BASELINE, "The comparison with --baseline, if it was given.", UNSAID),
    }
    return JsonObject("Benchmark", "What `flexref bench --json` prints on every line; figures are medians.", members)
