"""What the schemas of several commands share: policies, predictions, and members of outputs; it knows no command."""

from collections.abc import Mapping

from flexref.json_types.containers import ListOf, MapOf
from flexref.json_types.objects import JsonField, JsonObject, object_of
from flexref.json_types.values import JsonType, Number, Text, Truth, Whole
from flexref.policy import Policy
from flexref.simulator.prediction import Prediction

POLICY = object_of(Policy)

PREDICTION = object_of(Prediction, "tokens_per_s")

NAMES = ListOf(Text())


def output(title: str, about: str, members: Mapping[str, JsonField]) -> JsonObject:
    """An object that a command prints: it has all its members, whatever their defaults are elsewhere."""
    return JsonObject(title, about, {name: JsonField(part.kind, part.about) for name, part in members.items()})


def seconds(about: str) -> JsonField:
    """A member that is a time."""
    return JsonField(Number(0), about)


def member(kind: JsonType, about: str) -> JsonField:
    """A member of any kind."""
    return JsonField(kind, about)


PREDICTED = output(
    "PredictedAndMeasured",
    "What the job was predicted to take on a machine, with its rows' real lengths, and how far off that was.",
    {
        **PREDICTION.members,
        "machine": member(Text(), "The machine that it was predicted for."),
        "errors": member(
            MapOf(Number(), ("prefill", "decode", "both")),
            "How far off each phase is, as a share of what was measured: 0.1 is a tenth too slow.",
        ),
        "spread": member(Number(0), "The share over which repeats spread when the machine was measured."),
        "machine_busy": member(Truth(), "Whether other work ran while the machine was measured."),
        "missed": member(NAMES, "The phases that were predicted badly, each in a line."),
    },
)

COUNT = Whole(0)
