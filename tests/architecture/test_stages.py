"""A model's tensors stand in its file once, in tiles and in their order."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from flexref.architecture.published import PUBLISHED
from flexref.architecture.spec import ModelSpec
from flexref.architecture.stages import default_tile_rows, file_stages, stages

SPEC = ModelSpec("tiny", 50, 20, 12, 12, 2, 3, 48)


@given(
    vocabulary=st.integers(1, 300),
    tile_rows=st.integers(1, 300),
    tied=st.booleans(),
    projected=st.booleans(),
    affine=st.booleans(),
)
def test_every_tensor_stands_once_and_the_tiles_make_the_table(
    vocabulary: int, tile_rows: int, tied: bool, projected: bool, affine: bool
) -> None:
    spec = replace(SPEC, vocabulary=vocabulary, tied_head=tied, embed_width=8 if projected else 12, affine_norm=affine)
    groups = list(file_stages(spec, tile_rows))
    names = [tensor.name for group in groups for tensor in group.tensors]
    assert len(names) == len(set(names))
    tables = ("tokens/",) if tied else ("tokens/", "head/table/")
    for table in tables:
        tiles = [tensor for group in groups for tensor in group.tensors if tensor.name.startswith(table)]
        assert sum(tile.shape[0] for tile in tiles) == vocabulary
        assert all(tile.shape == (tile_rows, spec.embed_width) for tile in tiles[:-1])
    staged = {tensor.name for stage in stages(spec, tile_rows) for tensor in stage.tensors}
    assert set(names) - staged == (set() if tied else {name for name in names if name.startswith("tokens/")})


def test_only_matrices_of_layers_may_be_quantized() -> None:
    for stage in file_stages(SPEC, 20):
        for tensor in stage.tensors:
            matrix_of_layer = tensor.name.startswith("layers/") and len(tensor.shape) == 2
            assert tensor.quantizable == matrix_of_layer


@given(layer_bytes=st.integers(0, 1 << 24), element_bytes=st.sampled_from([2, 4]))
def test_a_tile_is_no_larger_than_a_layer_unless_64_rows_are(layer_bytes: int, element_bytes: int) -> None:
    rows = default_tile_rows(PUBLISHED["opt-125m"], layer_bytes, element_bytes)
    assert 64 <= rows <= 50272
    assert rows == 64 or rows * 768 * element_bytes <= layer_bytes
    assert rows == 50272 or rows % 64 == 0
