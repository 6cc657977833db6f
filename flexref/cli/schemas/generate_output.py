"""The schema of what `flexref generate --json` prints: outputs, and the account of the job."""

from flexref.cli.schemas.parts import PREDICTED, member, output
from flexref.engine.results import Output, Stats, TokenLogprob
from flexref.json_types.containers import ListOf
from flexref.json_types.objects import object_of
from flexref.json_types.values import JsonType, Maybe

TOKEN = object_of(TokenLogprob)

CHOSEN = output(
    "ChosenToken",
    "A generated token, and the most probable ones at its place.",
    {**TOKEN.members, "top": member(ListOf(TOKEN), "The most probable tokens, falling.")},
)

OUTPUT = object_of(Output)

STATS = object_of(Stats, "tokens_per_s", "read_tokens_per_s")


def generate() -> JsonType:
    """One job."""
    logprobs = member(Maybe(ListOf(CHOSEN)), OUTPUT.members["logprobs"].about)
    one = output(OUTPUT.title, "One row's result.", {**OUTPUT.members, "logprobs": logprobs})
    return output(
        "Generation",
        "What `flexref generate --json` prints.",
        {
            "outputs": member(ListOf(one), "One for every prompt, in their order."),
            "stats": member(output(STATS.title, STATS.about, STATS.members), "The account of the job."),
            "predicted": member(Maybe(PREDICTED), "What was predicted; null where no machine is known."),
        },
    )
