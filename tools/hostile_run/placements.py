"""Cases of jobs that are spread over the tiers at random, beside the same job with everything on the device."""

import json
from pathlib import Path
from random import Random

from hostile_run.shelf import SPEC, WEIGHT_FILES, Shelf
from hostile_run.trial import IN, TEMPORARY, Trial
from hostile_run.weight_files import DEVICE


def trial(draw: Random, shelf: Shelf, folder: Path) -> Trial:
    """A job on the device alone, then the same job under a policy that is drawn."""
    rows = [
        {"prompt": [draw.randrange(3, SPEC.vocabulary) for _ in range(draw.choice((1, 2, 5, 17, 40)))]}
        for _ in range(draw.choice((1, 2, 3, 7)))
    ]
    given = folder / IN / "rows.jsonl"
    given.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = ["generate", "--json", "--model", shelf.path(draw.choice(WEIGHT_FILES)), "--input", str(given)]
    job += ["--max-new-tokens", str(draw.choice((1, 2, 9, 30))), *draw.choice(([], ["--ignore-eos"]))]
    if draw.random() < 0.4:
        job += ["--temperature", str(draw.choice((0.1, 1.0, 5.0))), "--seed", str(draw.randrange(1000))]
        job += ["--top-k", str(draw.choice((0, 1, 20))), "--top-p", str(draw.choice((0.2, 0.9, 1.0)))]
    if draw.random() < 0.3:
        job.append("--quantize-cache")
    # How rows are grouped belongs to the job: sums of other shapes may be rounded differently.
    job += ["--rows-per-group", str(draw.choice((1, 2, 4))), "--groups", str(draw.choice((1, 2, 3)))]
    other = [*job, "--percent", *_percent(draw), "--device-mem-gib", "1", "--host-mem-gib", "1"]
    if draw.random() < 0.15:  # room that may be too little: refused then, and in order
        other[-3], other[-1] = (f"{draw.uniform(0.0001, 0.003):.6f}" for _ in range(2))
    other += draw.choice(([], ["--no-overlap"])) + draw.choice(([], ["--attention-on", "host"]))
    other += draw.choice(([], ["--disk-dir", str(folder / TEMPORARY)])) + draw.choice(([], ["--trace", "trace.json"]))
    return Trial([[*job, *DEVICE], other], folder, compare=True, outputs=frozenset({"trace.json"}))


def _percent(draw: Random) -> list[str]:
    """Six shares: weights, cache and activations on device and host."""
    shares = []
    for _ in range(3):
        device = draw.choice((0, 0, 100, draw.randrange(101)))
        host = draw.choice((0, 100 - device, draw.randrange(101 - device)))
        shares += [str(device), str(host)]
    return shares
