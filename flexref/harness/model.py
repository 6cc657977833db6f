"""Our engine as a model of the lm-evaluation-harness; importing it registers it there under the name `flexref`.

The harness sends texts, as many as a task has; they go through the engine in chunks of rows of like lengths. It knows
no task and no metric: those are the harness's.
"""

import weakref
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from flexref.architecture.stages import parameters
from flexref.engine.request import Request
from flexref.engine.scoring import ScoredRow, check_computes
from flexref.errors import PolicyError, PromptError
from flexref.loading import load
from flexref.policy import asked
from flexref.quality.perplexity import tokenizer_of
from flexref.sampling.settings import SamplingSettings
from flexref.units import is_integer
from flexref.version import __version__

CHUNK_ROWS = 1024
"""Rows of one job: what has been answered is kept by the harness's cache (`--use_cache`) chunk by chunk."""

MOST_NEW_TOKENS = 256
"""Of a generation whose task says nothing: the harness's own default."""

DEVICE_OF_NOBODY = "cuda:0"
"""What the harness's command passes where nobody asked for a device."""

SAMPLING_SETTINGS = ("temperature", "top_k", "top_p", "seed")

ARGUMENTS = (
    "path",
    "backend",
    "device_mem_gib",
    "host_mem_gib",
    "disk_dir",
    "policy",
    "max_length",
    "rows_per_group",
    "groups",
    "quantize_cache",
    "overlap",
    "row_invariant",
    "share_prefixes",
    "read_ahead_gib",
)
"""What `--model_args` may name."""

Item = TypeVar("Item")

Pair = tuple[tuple[str, str], list[int], list[int]]
"""A request's two texts (or None), and the token ids of context and continuation."""


@register_model("flexref")
class FlexrefLM(TemplateLM):  # type: ignore[misc]
    """A weight file on a port under budgets; see `flexref.load`.

    `options`: ARGUMENTS, and what the harness passes to every model, of which `batch_size` above 1 is rows per group
    (1 and `auto`: planned); `device` and `max_batch_size` are refused. `max_length`: tokens that the model reads at
    once, at most and by default its positions. Raises `PolicyError` for an argument that there is not, and what
    `flexref.load` raises.
    """

    def __init__(
        self, path: str | None = None, backend: str = "numpy", max_length: int | None = None, **options: Any
    ) -> None:
        super().__init__()
        if path is None:
            raise PolicyError("--model_args must name a weight file, or the built-in model: path=demo")
        wanted = asked(_checked(options))
        self.engine = load(str(path), policy=wanted.policy, backend=backend, keep=wanted.keep, **wanted.budgets)
        weakref.finalize(self, self.engine.close)
        check_computes(self.engine.backend)
        self._tokens = tokenizer_of(self.engine)
        self._begin = self._tokens.encode("")
        spec = self.engine.file.spec
        known = (*self._begin[:1], *([] if spec.bos_token_id is None else [spec.bos_token_id]), *spec.eos_token_ids)
        if not known:
            raise PromptError(f"{path} names no token that begins or ends a text: its first token cannot be scored")
        self._prefix, self._end = known[0], (*spec.eos_token_ids, *known)[0]
        self.max_length = spec.positions if max_length is None else max_length
        if not is_integer(self.max_length) or not 1 <= self.max_length <= spec.positions:
            raise PolicyError(f"max_length must be a number of tokens from 1 to {spec.positions}, found {max_length!r}")

    # What the harness asks of a model

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self._end

    @property
    def prefix_token_id(self) -> int:
        """The token that begins a text, after which its first token is scored."""
        return self._prefix

    @property
    def tokenizer_name(self) -> str:
        """A name for caches of requests."""
        return str(self.engine.file.path)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """`PromptError`: none of these models was made for chats."""
        raise PromptError("OPT models have no chat template: leave --apply_chat_template out")

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside its results."""
        file = self.engine.file
        return {
            "flexref_version": __version__,
            "model_num_parameters": parameters(file.spec),
            "model_scheme": file.scheme,
            "model_group_size": file.group_size,
            "model_dtype": file.dtype,
            "model_spec": asdict(file.spec),
            "backend": self.engine.backend.name,
        }

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; unless told otherwise as the model begins texts, and never begun twice."""
        ids = self._tokens.encode(string)
        begin = len(self._begin)
        plain = ids[begin:]
        spelled_out = bool(self._begin) and plain[:begin] == self._begin
        if add_special_tokens is False or (add_special_tokens is None and spelled_out):
            return plain
        return ids

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of whole texts, by the harness's windows; their first token follows the prefix token."""
        pairs: list[Pair] = []
        owners = []
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1):
                pairs.append((request.args, *make_disjoint_window(window)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, (logprob, _) in zip(owners, self._loglikelihood_tokens(pairs, disable_tqdm, None), strict=True):
            totals[owner] += logprob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _loglikelihood_tokens(
        self, requests: Sequence[Pair], disable_tqdm: bool = False, attribute: str | None = "loglikelihood", **_: Any
    ) -> list[tuple[float, bool]]:
        """Of every pair the continuation's log-likelihood, and whether each of its tokens is the most probable one.

        `attribute`: under what name answers are kept for the harness's cache. Raises `PromptError` for a continuation
        of no tokens, or of more than the model reads at once.
        """
        rows = [self._row(context, continuation) for _, context, continuation in requests]
        found = [(0.0, False)] * len(rows)
        with tqdm(total=len(rows), desc="Running loglikelihood requests", disable=disable_tqdm) as bar:
            for some in _chunks(rows, key=lambda row: len(row.token_ids)):
                # Those that begin alike follow each other: what they share is read once while it is needed.
                chunk = sorted(some, key=lambda number: rows[number].token_ids)
                scores = self.engine.score([rows[number] for number in chunk]).rows
                for number, row in zip(chunk, scores, strict=True):
                    found[number] = (float(row.logprobs.sum()), bool(row.greedy.all()))
                    if attribute is not None:
                        self.cache_hook.add_partial(attribute, requests[number][0], found[number])
                bar.update(len(chunk))
        return found

    def _row(self, context: list[int], continuation: list[int]) -> ScoredRow:
        """A context that is too long loses its oldest tokens."""
        if not continuation:
            raise PromptError("a continuation of no tokens cannot be scored")
        if len(continuation) > self.max_length:
            raise PromptError(
                f"a continuation has {len(continuation)} tokens, the model reads {self.max_length} at once"
            )
        ids = (*context, *continuation)[-(self.max_length + 1) :]
        return ScoredRow(ids, len(ids) - len(continuation))

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts that go on from the contexts, each up to the first of its stop strings or the end token.

        Raises `PromptError` for a setting that there is not.
        """
        prompts, wanted = [], defaultdict(list)
        for number, request in enumerate(requests):
            context, settings = request.args
            asked = request_of(settings)
            room = self.max_length - asked.max_new_tokens
            if room < 1:
                raise PromptError(
                    f"{asked.max_new_tokens} new tokens leave no room for a context: the model reads {self.max_length}"
                )
            prompts.append(self.tok_encode(context)[-room:])
            wanted[asked].append(number)
        found = [""] * len(requests)
        with tqdm(total=len(requests), desc="Running generate_until requests", disable=disable_tqdm) as bar:
            for asked, numbers in wanted.items():
                for places in _chunks([prompts[number] for number in numbers], key=len):
                    chunk = [numbers[place] for place in places]
                    outputs = self.engine.generate([prompts[number] for number in chunk], asked).outputs
                    for number, output in zip(chunk, outputs, strict=True):
                        found[number] = output.text or ""
                        self.cache_hook.add_partial("generate_until", requests[number].args, found[number])
                    bar.update(len(chunk))
        return found


def request_of(settings: dict[str, Any]) -> Request:
    """The harness's settings of a generation as ours; `PromptError` names those that there are not."""
    left = normalize_gen_kwargs(settings, MOST_NEW_TOKENS)
    stops, most, sampled = left.pop("until"), left.pop("max_gen_toks"), left.pop("do_sample", False)
    sampling = {name: left.pop(name) for name in SAMPLING_SETTINGS if left.get(name) is not None}
    if not sampled:
        sampling["temperature"] = 0.0
    if left:
        raise PromptError(f"generation knows no {', '.join(sorted(left))}; it knows until, max_gen_toks, do_sample, "
                          f"{', '.join(SAMPLING_SETTINGS)}")  # fmt: skip
    return Request(most, SamplingSettings(**sampling), tuple(stop for stop in stops if stop))


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    """The arguments that `flexref.policy.asked` takes, with the harness's `batch_size` as rows per group."""
    given = dict(options)
    if given.pop("device", None) not in (None, DEVICE_OF_NOBODY) or given.pop("max_batch_size", None) is not None:
        raise PolicyError("device and max_batch_size have no meaning here: backend= names a port, rows_per_group= rows")
    batch_size = given.pop("batch_size", None)
    unknown = sorted(set(given) - set(ARGUMENTS))
    if unknown:
        raise PolicyError(f"unknown model argument {', '.join(unknown)}; known: {', '.join(ARGUMENTS)}")
    if batch_size not in (None, "auto", "1", 1):
        if not str(batch_size).isdecimal():
            raise PolicyError(f"batch_size must be a number of rows or auto, found {batch_size!r}")
        if given.get("rows_per_group") is None:
            given["rows_per_group"] = int(batch_size)
    return given


def _chunks(items: Sequence[Item], key: Any) -> Iterator[list[int]]:
    """The numbers of all items, the longest first, some at a time."""
    order = sorted(range(len(items)), key=lambda number: -key(items[number]))
    for first in range(0, len(order), CHUNK_ROWS):
        yield order[first : first + CHUNK_ROWS]
