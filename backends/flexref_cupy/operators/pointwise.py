"""Rows of tables, layer norms and activations of the port, as functions of its arrays; it knows no layer.

Rows move 16 bytes at a time where they are aligned so, else one value at a time: the bits are the same.
"""

from flexref_cupy.device import Device
from flexref_cupy.memory import Tensor
from flexref_cupy.operators.expanding import C_TYPES, is_aligned

THREADS = 256
"""Threads of a block of gather.cu, add_rows.cu and activate.cu."""

RUN = 8
"""Columns that a thread takes at a time: 16 bytes of halves."""

RUN_BYTES = 16

MOST_ROWS = 65535
"""CUDA's bound on a grid's second side; the kernels go on with the rows beyond it."""

WARP = 32

NORM_HELD = 2
"""Runs of a row that a thread of layer_norm.cu keeps in registers: more of them would leave it too few threads."""

NORM_MOST_THREADS = 1024
"""Bounds a block of layer_norm.cu; rows wider than it can hold are read three times."""


def gather(device: Device, table: Tensor, ids: Tensor, first: int, out: Tensor) -> None:
    """See `Backend.gather`: table (N, W), ids int32 (T,), out (T, W) of the table's type, or float16."""
    tokens, width = out.shape
    if not tokens:
        return
    run = _run(width, table, out)
    types = {"TABLE": C_TYPES[table.dtype], "OUT": C_TYPES[out.dtype]}
    kernel = device.kernels.get("gather", "gather", 0, **types, RUN=run)
    source = (table.address, table.pitch, table.shape[0], ids.address, first)
    kernel(_grid(tokens, width, run), THREADS, *source, out.address, out.pitch, tokens, width)


def add_rows(device: Device, x: Tensor, table: Tensor, ids: Tensor) -> None:
    """See `Backend.add_rows`: x (T, E) float16; a token whose id is no row of the table becomes NaN."""
    tokens, width = x.shape
    if not tokens:
        return
    run = _run(width, table, x)
    kernel = device.kernels.get("add_rows", "add_rows", 0, TABLE=C_TYPES[table.dtype], RUN=run)
    source = (table.address, table.pitch, table.shape[0], ids.address)
    kernel(_grid(tokens, width, run), THREADS, x.address, x.pitch, *source, tokens, width)


def layer_norm(device: Device, x: Tensor, w: Tensor | None, b: Tensor | None, epsilon: float, out: Tensor) -> None:
    """See `Backend.layer_norm`: x and out (T, E) float16, w and b (E,) of either type.

    The block's size, and with it the order of the sums, follows from E alone.
    """
    tokens, width = x.shape
    if not tokens:
        return
    warps = -(-width // (RUN * NORM_HELD * WARP))
    fits = warps * WARP <= NORM_MOST_THREADS
    affine = (0 if w is None else w.address, 0 if b is None else b.address)
    places = x.address | x.pitch_bytes | out.address | out.pitch_bytes | affine[0] | affine[1]
    kernel = device.kernels.get(
        "layer_norm",
        "layer_norm",
        WEIGHT="half" if w is None else C_TYPES[w.dtype],
        BIAS="half" if b is None else C_TYPES[b.dtype],
        HELD=NORM_HELD if fits else 0,
        WHOLE=int(not (places % RUN_BYTES or width % RUN)),
    )
    block = warps * WARP if fits else NORM_MOST_THREADS
    kernel((tokens, 1, 1), block, x.address, x.pitch, *affine, epsilon, out.address, out.pitch, width)


def activate(device: Device, x: Tensor, activation: str) -> None:
    """See `Backend.activate`: x (T, F) float16, in place; rows without gaps are taken as one."""
    tokens, width = x.shape
    if not tokens:
        return
    if x.contiguous:
        x = Tensor(x.address, (1, tokens * width), x.dtype, tokens * width)
    rows, columns = x.shape
    run = _run(columns, x)
    kernel = device.kernels.get("activate", "activate", ACTIVATION=activation, RUN=run)
    kernel(_grid(rows, columns, run), THREADS, x.address, x.pitch, rows, columns)


def _run(width: int, *operands: Tensor) -> int:
    """The columns that a thread may take at a time."""
    return RUN if width % RUN == 0 and all(is_aligned(operand, RUN_BYTES) for operand in operands) else 1


def _grid(rows: int, width: int, run: int) -> tuple[int, int, int]:
    return (-(-width // (THREADS * run)), min(rows, MOST_ROWS), 1)
