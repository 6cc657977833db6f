"""Settings of a prompt's own: read where they are asked for, checked with their line, and refused everywhere else."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexref.errors import PromptError
from flexref.text.prompt_settings import SETTINGS, Settings
from flexref.text.prompts import Prompt, read_prompts

GIVEN = st.fixed_dictionaries(
    {},
    optional={
        "max_new_tokens": st.integers(1, 1 << 40),
        "temperature": st.integers(0, 3) | st.floats(0, 3),
        "top_k": st.integers(0, 9),
        "top_p": st.floats(0, 1),
        "seed": st.integers(0, 1 << 64),
        "stop": st.text(min_size=1) | st.lists(st.text(min_size=1), max_size=3),
    },
)


@pytest.fixture(scope="session")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prompts") / "prompts.jsonl"


def expected(values: dict[str, Any]) -> dict[str, Any] | None:
    stop = values.get("stop", ())
    stops = {"stop": (stop,) if isinstance(stop, str) else tuple(stop)} if "stop" in values else {}
    return {**values, **stops} or None


@given(lines=st.lists(GIVEN, min_size=1, max_size=4))
def test_every_line_may_have_its_own(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps({"prompt": [1, 2], "id": at, **line}) + "\n" for at, line in enumerate(lines)))
    told: list[Settings] = []
    prompts = read_prompts(path, on_settings=told.append)
    assert prompts == [Prompt(None, (1, 2), at, expected(line)) for at, line in enumerate(lines)]
    assert told == [prompt.settings for prompt in prompts if prompt.settings]
    if any(lines):
        with pytest.raises(PromptError, match="is not known; known: prompt, id"):
            read_prompts(path)


NO_NUMBERS = float("nan"), float("inf")

WRONG: dict[str, tuple[Any, ...]] = {
    "max_new_tokens": (0, -1, 1.0, True, "3", None),
    "temperature": (-0.5, "hot", True, None, *NO_NUMBERS),
    "top_k": (-1, 0.5, False),
    "top_p": (-0.1, 1.1, [1]),
    "seed": (-1, 1.5),
    "stop": ("", [""], [1], 3, None, {"a": 1}),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_what_is_no_setting_is_told_with_its_line_and_in_python_by_name(path: Path, name: str, value: Any) -> None:
    path.write_text(json.dumps({"prompt": "one"}) + "\n" + json.dumps({"prompt": "two", name: value}) + "\n")
    with pytest.raises(PromptError) as error:
        read_prompts(path, on_settings=lambda settings: None)
    # JSON itself has no number that is none.
    why = f"{name} must be " if value not in NO_NUMBERS else "not JSON: "
    assert str(error.value).startswith(f"{path}, line 2: {why}")
    with pytest.raises(PromptError, match=f"^{name} must be "):
        Prompt(text="two", settings={name: value})


def test_every_setting_has_wrong_values_above() -> None:
    assert set(WRONG) == set(SETTINGS.members)


def test_an_unknown_setting_is_refused_and_the_right_one_is_named(path: Path) -> None:
    path.write_text('{"prompt": "one", "max_tokens": 3}\n')
    with pytest.raises(PromptError, match=r"'max_tokens' is not known; .*; did you mean `max_new_tokens`\?"):
        read_prompts(path, on_settings=lambda settings: None)
    path.write_text('{"prompt": "one", "logprobs": 3}\n')
    with pytest.raises(PromptError, match=r"did you mean the option --logprobs, which holds for every prompt\?"):
        read_prompts(path, on_settings=lambda settings: None)
    with pytest.raises(PromptError, match=r"^unknown setting 'maximum'"):
        Prompt(text="one", settings={"maximum": 3})


def test_what_cannot_be_served_is_told_with_its_line(path: Path) -> None:
    def refuse(settings: Settings) -> None:
        raise PromptError(f"top_k must be less, found {settings['top_k']}")

    path.write_text('{"prompt": "one"}\n{"prompt": "two", "top_k": 9}\n')
    with pytest.raises(PromptError) as error:
        read_prompts(path, on_settings=refuse)
    assert str(error.value) == f"{path}, line 2: top_k must be less, found 9"
