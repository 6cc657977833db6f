"""What plots are drawn with, whatever they show."""

from flexref.cli.show.plots import COLOURS, MARKERS, style


def test_no_two_of_many_things_look_alike_and_the_first_differ_in_colour_and_marker() -> None:
    pairs = [tuple(style(number).values()) for number in range(len(COLOURS) * len(MARKERS))]
    assert len(set(pairs)) == len(pairs)
    colours, markers = zip(*pairs[: len(COLOURS)], strict=True)
    assert (colours, markers) == (COLOURS, MARKERS)
