"""The schema of what `flexref plan` prints with `--json` and writes with `-o`: the policy, with its reasons."""

from flexref.cli.schemas.parts import COUNT, NAMES, POLICY, PREDICTION, member, output
from flexref.json_types.containers import ListOf
from flexref.json_types.objects import UNSAID, JsonField, JsonObject, object_of
from flexref.json_types.values import JsonType, Maybe, Number, OneOf, Text
from flexref.planner.plan import OneMore
from flexref.planner.plan_request import PlanRequest
from flexref.policy import CACHE_SCHEMES, PLACES, WEIGHT_SCHEMES

PLANNED = output("Prediction", "What a job will take.", PREDICTION.members)

BINDING = member(NAMES, "What keeps the best policy from being faster.")

CANDIDATE = output(
    "Candidate",
    "One way of storing things and a place for attention, with its best policy.",
    {
        "label": member(Text(), "It in words."),
        "weights_scheme": member(OneOf(tuple(WEIGHT_SCHEMES)), "How weights are stored."),
        "cache_scheme": member(OneOf(CACHE_SCHEMES), "How the cache is stored."),
        "attention_on": member(OneOf(PLACES), "Where decode attention over a cache off the device is computed."),
        "policy": member(Maybe(POLICY), "Its best policy; null if none fits."),
        "predicted": member(Maybe(PLANNED), "What the job will take by it; null if none fits."),
        "problem": member(Maybe(Text()), "Why no policy fits; null if one does."),
    },
)


def plan() -> JsonType:
    """One plan; costs are there where prices were given."""
    request, more = object_of(PlanRequest), object_of(OneMore)
    best = output("BestPrediction", "What the job will take.", {**PREDICTION.members, "binding": BINDING})
    searched = output(
        "",
        "",
        {
            "solved": member(COUNT, "Linear programs that were solved."),
            "pruned": member(COUNT, "Those that a bound made needless."),
        },
    )
    members = {
        "policy": member(POLICY, "The best policy: every command takes it from this file."),
        "predicted": member(best, "What the job will take by it."),
        "binding": BINDING,
        "one_more": member(ListOf(more), "What one more unit of everything would bring."),
        "candidates": member(ListOf(CANDIDATE), "All ways of storing things that were looked at."),
        "model": member(Text(), "The model that was planned for."),
        "machine": member(Text(), "The machine that was planned for."),
        "wanted": member(output(request.title, request.about, request.members), "What was asked for."),
        "searched": member(searched, "How much was searched."),
        "disk_written_bytes_per_million_tokens": member(Number(0), "Bytes spilled for a million generated tokens."),
        "cost_per_million_tokens": JsonField(Number(0), "The price of a million generated tokens.", UNSAID),
        "disk_life_days": JsonField(Maybe(Number(0)), "Days until the drive is worn out; null: never.", UNSAID),
        "plan_s": member(Number(0), "Seconds that planning took."),
    }
    return JsonObject("Plan", "What `flexref plan --json` prints and `-o` writes.", members)
