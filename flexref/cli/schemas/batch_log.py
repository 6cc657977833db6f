"""The schema of a line that `flexref batch --log-json` writes: the job's facts, where it stands, events, its end."""

from flexref.batch_job.states import ENDINGS, JobEvent, JobFacts, JobState
from flexref.cli.schemas.parts import COUNT, member, output
from flexref.json_types.objects import UNSAID, JsonField, JsonObject, object_of
from flexref.json_types.values import Either, JsonType, Maybe, Number, OneOf, Text, Truth

RATES = {
    "tokens_per_s_now": member(Number(0), "New tokens per second of the last half minute, or of the latest pass."),
    "tokens_per_s": member(Number(0), "New tokens per second since the first pass began."),
    "left_s": member(Maybe(Number(0)), "Seconds until all lines are done; null where that is unknown."),
    "left_is_predicted": member(Truth(), "Whether that is what the prediction leaves, not measured."),
    "occupancy": member(Number(0, 1), "Live rows over places in the latest pass."),
}

LEFT_OUT = JsonField(COUNT, "Lines before this one that were left out, since their reader was slow.", UNSAID)


def _line(kind: str, title: str, about: str, members: dict[str, JsonField]) -> JsonObject:
    """A line of one type: it has all of `members`."""
    head = {
        "type": member(OneOf((kind,)), "What the line tells."),
        "time": member(Text(), "When, in UTC."),
    }
    whole = output(title, about, {**head, **members})
    return JsonObject(title, about, {**whole.members, "lines_left_out": LEFT_OUT})


def batch_log() -> JsonType:
    """A line of the log."""
    facts, state, event = (object_of(cls) for cls in (JobFacts, JobState, JobEvent))
    ending = {"at_s": state.members["at_s"], "ending": member(OneOf(ENDINGS), "How the job ended.")}
    return Either(
        (
            _line("begin", "BatchBegins", facts.about, dict(facts.members)),
            _line("state", "BatchStands", state.about, {**state.members, **RATES}),
            _line("event", "BatchEvent", event.about, dict(event.members)),
            _line("end", "BatchEnds", "The job has ended.", ending),
        )
    )
