"""Floating point operations of a model's products and attention, from its program; it knows no time."""

from flexref.architecture.program import Attend, BranchStep, Project, program_of
from flexref.architecture.spec import ModelSpec


def decode_flops(spec: ModelSpec, context: int) -> int:
    """FLOPs for one token that attends to `context` tokens: 2 per weight of a product, 4 E per key and layer.

    FlexGen, appendix A.3, with the head included.
    """
    return _hidden_flops(spec, context) + _head_flops(spec)


def prefill_flops(spec: ModelSpec, prompt: int) -> int:
    """FLOPs to process a prompt of `prompt` tokens, causal, with logits of its last token only."""
    return sum(_hidden_flops(spec, context) for context in range(1, prompt + 1)) + _head_flops(spec)


def _hidden_flops(spec: ModelSpec, context: int) -> int:
    """All of one token but the product with the head's table."""
    program = program_of(spec)
    layer = sum(_step_flops(step, context) for step in program.layer_steps())
    outside = (program.embed.project, program.head.project)
    return program.layers * layer + sum(_step_flops(step, context) for step in outside if step is not None)


def _step_flops(step: BranchStep, context: int) -> int:
    """Norms and activations are left out, as in the literature: products are hundreds of times more."""
    if isinstance(step, Project):
        return 2 * step.outputs * step.inputs
    return 4 * step.width * context if isinstance(step, Attend) else 0


def _head_flops(spec: ModelSpec) -> int:
    table = program_of(spec).head.table
    return 2 * table.rows * table.width
