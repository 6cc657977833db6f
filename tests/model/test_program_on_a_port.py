"""Every reader of a model's program says the same: files, counts, costs, and the calls on a port, for any variant."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from flexref_dry import DryBackend
from hypothesis import given
from hypothesis import strategies as st

from flexref.architecture.flops import decode_flops, prefill_flops
from flexref.architecture.program import program_of
from flexref.architecture.spec import ModelSpec
from flexref.architecture.stages import Stage, StageKind, file_stages, parameters, stages, token_tiles
from flexref.backend.records import RecordLayout
from flexref.model.cache import LayerCache
from flexref.model.layers import decoder_layer
from flexref.model.stages import EmbedInputs, embed_visit, final_hidden, head_tile
from flexref.model.weights import StageWeights, by_role
from flexref.planner.program.cost_compute import operator_calls
from flexref.testing import strategies as own
from flexref.testing.tasks import plain_task
from flexref.units import DTYPE_BYTES

TYPE = "float32"


class SpyingBackend(DryBackend):
    """The port that only counts, and that notes which of the arrays it was given as learned an operator reads."""

    def __init__(self) -> None:
        super().__init__(TYPE)
        self.learned: dict[int, tuple[str, Any]] = {}
        self.read: Counter[str] = Counter()

    def array(self, shape: tuple[int, ...], dtype: str = TYPE) -> Any:
        return self.view(self.allocate("device", int(np.prod(shape)) * DTYPE_BYTES[dtype]), 0, shape, dtype)

    def weights(self, stage: Stage) -> StageWeights:
        arrays = {tensor.name: self.array(tensor.shape) for tensor in stage.tensors}
        self.learned |= {id(array): (name, array) for name, array in arrays.items()}
        return by_role(stage, arrays)

    def note(self, *operands: Any) -> None:
        self.read.update(self.learned[id(operand)][0] for operand in operands if id(operand) in self.learned)

    def gather(self, table: Any, ids: Any, first: int, out: Any) -> Any:
        self.note(table)
        return super().gather(table, ids, first, out)

    def add_rows(self, x: Any, table: Any, ids: Any) -> Any:
        self.note(table)
        return super().add_rows(x, table, ids)

    def linear(self, x: Any, w: Any, b: Any, *, out: Any = None, add: bool = False) -> Any:
        self.note(w, b)
        return super().linear(x, w, b, out=out, add=add)

    def layer_norm(self, x: Any, w: Any, b: Any, epsilon: float, out: Any = None) -> Any:
        self.note(w, b)
        return super().layer_norm(x, w, b, epsilon, out)


def run_a_pass(spec: ModelSpec, tile_rows: int, past: int, new: int) -> SpyingBackend:
    """One row of `new` tokens after `past` ones through all stages, up to a choice from its last token's logits."""
    port, program = SpyingBackend(), program_of(spec)
    embed, *layers = (stage for stage in stages(spec, tile_rows) if stage.kind is not StageKind.HEAD)
    heads = [stage for stage in stages(spec, tile_rows) if stage.kind is StageKind.HEAD]
    tables = []
    for tile in token_tiles(spec, tile_rows):
        array = port.array(tile.shape)
        port.learned[id(array)] = f"gathered {tile.name}", array
        tables.append((tile.index * tile_rows, array))
    x, ids = port.array((new, spec.width)), np.zeros(new, np.int32)
    inputs = EmbedInputs(port.upload(ids), port.upload(ids), tables, port.array((new, spec.embed_width)))
    embed_visit(port, program.embed, port.weights(embed), inputs, x)
    layout = RecordLayout(spec.heads, spec.head_width, TYPE)
    for layer in layers:
        records = port.array(((past + new) * layout.record_bytes,), "uint8")
        cache = LayerCache(port.cache_rows([records], layout), port.segments([past], [new]), new)
        decoder_layer(port, program.layer, port.weights(layer), x, cache)
    hidden, logits = port.array((1, spec.embed_width)), port.array((1, spec.vocabulary))
    for tile, head in enumerate(heads):
        weights = port.weights(head)
        if tile == 0:
            final_hidden(port, program.head, weights, x, port.upload(np.zeros(1, np.int32)), hidden)
        head_tile(port, program.head, weights, hidden, tile * tile_rows, logits)
    port.sample(logits, 0.0, 0, 1.0, np.zeros(1))
    return port


@given(spec=own.specs(), tiles=st.integers(1, 3), new=st.integers(1, 3))
def test_a_pass_reads_every_tensor_of_the_file_exactly_once(spec: ModelSpec, tiles: int, new: int) -> None:
    tile_rows = -(-spec.vocabulary // tiles)
    gathered = [tile.name for tile in token_tiles(spec, tile_rows)]
    in_stages = [tensor.name for stage in stages(spec, tile_rows) for tensor in stage.tensors]
    in_file = [tensor.name for stage in file_stages(spec, tile_rows) for tensor in stage.tensors]
    read = run_a_pass(spec, tile_rows, 2, new).read
    assert read == Counter([*in_stages, *(f"gathered {name}" for name in gathered)])
    assert sorted(in_file) == sorted({*in_stages, *gathered})


@given(spec=own.specs(), past=st.integers(0, 7))
def test_the_flops_of_a_decode_are_those_of_the_operators_that_it_calls(spec: ModelSpec, past: int) -> None:
    flops = run_a_pass(spec, spec.vocabulary, past, 1).flops
    assert decode_flops(spec, past + 1) == flops["linear"] + flops["attend"]


@given(spec=own.specs(), prompt=st.integers(1, 9))
def test_the_flops_of_a_prefill_are_those_of_its_operators_with_the_head_s_projection_for_all_tokens(
    spec: ModelSpec, prompt: int
) -> None:
    flops = run_a_pass(spec, spec.vocabulary, 0, prompt).flops
    unneeded = 2 * spec.width * spec.embed_width * (prompt - 1) if spec.projected else 0
    assert prefill_flops(spec, prompt) - unneeded == flops["linear"] + flops["attend"]


@given(spec=own.specs())
def test_the_planner_counts_the_calls_that_a_pass_makes(spec: ModelSpec) -> None:
    task = plain_task(spec)
    tile_rows = -(-spec.vocabulary // task.stage_kinds.count("head"))
    calls = run_a_pass(spec, tile_rows, 3, 1).calls
    counted = float(operator_calls(task, far=False).constant)
    assert counted == calls.total()


@given(spec=own.specs())
def test_the_parameters_are_those_of_the_formula(spec: ModelSpec) -> None:
    width, ffn, table = spec.width, spec.ffn_width, spec.vocabulary * spec.embed_width
    layer = 4 * width**2 + 2 * width * ffn + spec.bias * (5 * width + ffn) + spec.affine_norm * 4 * width
    outside = (spec.positions + 2) * width + spec.projected * 2 * width * spec.embed_width
    final_norm = spec.final_norm * spec.affine_norm * 2 * width
    tables = table if spec.tied_head else 2 * table
    assert parameters(spec) == spec.layers * layer + outside + final_norm + tables


@pytest.mark.parametrize("pre_norm", [True, False])
def test_norms_after_their_blocks_change_the_order_of_steps_and_not_that_of_the_file(pre_norm: bool) -> None:
    spec = ModelSpec("any", 9, 4, 6, 6, 1, 2, 8, pre_norm=pre_norm, final_norm=False)
    steps = [type(step).__name__ for step in program_of(spec).layer_steps()]
    attention, feed_forward = ["Project", "Attend", "Project"], ["Project", "Activate", "Project"]
    before, after = (["Norm"], []) if pre_norm else ([], ["Norm"])
    assert steps == [*before, *attention, *after, *before, *feed_forward, *after]
    names = [tensor.name.split("/")[2] for tensor in stages(spec, 9)[1].tensors]
    assert list(dict.fromkeys(names)) == [
        *("attention_norm", "attention_qkv", "attention_out", "ffn_norm", "ffn_up", "ffn_down")
    ]
