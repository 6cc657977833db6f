"""JSON is read strictly: what two readers might take for two values is refused in one line."""

import pytest

from flexref.errors import PromptError
from flexref.json_types.parsing import as_json


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"a": 1, "b": 2, "a": 1}', "not JSON: the key 'a' stands twice in one of its objects"),
        ('[{"b": {"a": 1, "\\u0061": 2}}]', "not JSON: the key 'a' stands twice in one of its objects"),
        ('{"a": "\\ud800"}', r"not JSON: \\ud800 is half of a surrogate pair"),
        ('{"\\uDC00\\ud800": 1}', r"not JSON: \\udc00 is half of a surrogate pair"),
        ('{"a": NaN}', "not JSON: NaN is no number"),
        ('{"a": -1e999}', "not JSON: '-1e999' is beyond the range of floats"),
        ("{", "not JSON: Expecting property name enclosed in double quotes: .*"),
        ("[" * 100_000, "not JSON: maximum recursion depth exceeded.*"),
    ],
)
def test_what_is_no_json_or_says_two_things_is_refused(text: str, why: str) -> None:
    with pytest.raises(PromptError, match=f"^here: {why}$"):
        as_json(text, "here", PromptError)


def test_all_else_is_taken() -> None:
    text = '{"a": [1.5, {"a": "\\ud83d\\ude00 \\\\ud800"}], "b": 12345678901234567890123}'
    found = {"a": [1.5, {"a": "\U0001f600 \\ud800"}], "b": 12345678901234567890123}
    assert as_json(text, "here", PromptError) == found
