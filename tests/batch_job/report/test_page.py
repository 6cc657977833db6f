"""The page of a report: well formed, self-contained, escaped, and with the figures of its job."""

import re
from collections import Counter
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_kit import BEGAN, MadeRun, figures, notes

from flexref.batch_job.report.figures import figures_of
from flexref.batch_job.report.history import history_of
from flexref.batch_job.report.page import page
from flexref.batch_job.report.tally import FailedExample, FailedLines, Tally
from flexref.batch_job.report.words import money

VOID = {"meta", "link", "img", "br", "hr", "input", "base", "source", "embed", "area", "col", "track", "wbr"}

REFERRING = {"src", "href", "xlink:href", "action", "data", "poster", "srcset", "background", "formaction", "ping"}

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</title></style></svg></table>",
    "{{ 7 * 7 }}{% include '/etc/passwd' %}",
    "&lt;b&gt; &amp;",
    "javascript:alert(1)' onload='x",
    "\x00\x1b[31m\ud800\u202e",
    "]]><!--",
)


class Reader(HTMLParser):
    """Reads a page strictly: every element that is opened is closed, in order, and attributes stand once."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, Any]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, Any]]) -> None:
        names = tuple(name for name, _ in attrs)
        assert len(set(names)) == len(names), (tag, names)
        self.tags.append((tag, names))
        self.ids += [value for name, value in attrs if name == "id"]
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(text: str) -> Reader:
    """The page, read whole."""
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def tally(custom_id: str = "request-7", message: str = "it is wrong", code: str = "invalid_value") -> Tally:
    return Tally(
        answered=30,
        prompt_lengths=Counter({17: 20, 1033: 10}),
        output_lengths=Counter({128: 30}),
        finish_reasons=Counter({"stop": 12, "length": 18}),
        failed={code: FailedLines(4, [FailedExample(custom_id, message)])},
    )


def made(text: str | None = None, **facts: Any) -> str:
    """The page of a job with three runs, all of whose names and messages are `text`."""
    said = text or "the disk is slow"
    events = (("fault", said), ("retry", said))
    runs = [MadeRun(5, events=events), MadeRun(30, 50.0, "paused"), MadeRun(2, 1e6, "done")]
    if text is not None:
        facts = {"model": text, "input": text, "machine": text, "backend": text, "policy": {text: text}, **facts}
    counted = tally() if text is None else tally(text, text, text)
    job = figures(runs, tally=counted, predicted_s=500.0, **facts)
    return page(job if text is None else replace(job, output=text.replace("/", "") or "out.jsonl"))


@cache
def plain_tags() -> list[tuple[str, tuple[str, ...]]]:
    """The elements of a page with harmless words."""
    return read(made("plain")).tags


CASES = {
    "done": made,
    "running": lambda: page(figures([MadeRun(4, events=(("warning", "slow"),))], tally=tally())),
    "killed": lambda: page(figures([MadeRun(1)], 9e5)),
    "begun": lambda: page(figures([MadeRun(0)])),
    "of a stream": lambda: page(figures([MadeRun(2, 0, "done")], lines=None, usd_per_hour=None, rates=None)),
    "never begun": lambda: page(figures([])),
    "of many runs": lambda: page(figures([MadeRun(1, 3.0, "failed")] * 300)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_page_is_well_formed_and_asks_nobody_for_anything(case: str) -> None:
    text = CASES[case]()
    reader = read(text)
    assert text.startswith("<!doctype html>")
    assert len(set(reader.ids)) == len(reader.ids)
    tags = {tag for tag, _ in reader.tags}
    assert not tags & {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "base",
        "form",
        "image",
        "use",
        "foreignobject",
    }
    for tag, name, value in reader.attributes:
        assert name not in REFERRING, (tag, name)
        assert not name.startswith("on"), (tag, name)
        assert "//" not in value, (tag, name, value)
        assert "url(" not in value
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert not re.search(r"url\(|@import|//|\\", style)
    assert (
        "meta",
        "content",
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
    ) in (reader.attributes)


@pytest.mark.parametrize("case", CASES)
def test_every_chart_has_words_and_every_part_a_heading(case: str) -> None:
    reader = read(CASES[case]())
    pictures = [names for tag, names in reader.tags if tag == "svg" and "aria-hidden" not in names]
    assert all("aria-labelledby" in names and "role" in names for names in pictures)
    for _, name, value in reader.attributes:
        if name == "aria-labelledby":
            assert set(value.split()) <= set(reader.ids)
    assert sum(tag == "h1" for tag, _ in reader.tags) == 1
    assert sum(tag == "h2" for tag, _ in reader.tags) == sum(tag == "section" for tag, _ in reader.tags)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text: str) -> None:
    reader = read(made(text))
    assert reader.tags == plain_tags()
    shown = "".join(reader.text)
    assert re.sub("[\x00\x1b\ud800]", "\N{REPLACEMENT CHARACTER}", text) in shown


@settings(max_examples=25)
@given(st.text(st.characters(exclude_categories=[]), min_size=1, max_size=40))
def test_no_text_changes_the_structure_of_a_page(text: str) -> None:
    found = made(text)
    found.encode("utf-8")
    assert read(found).tags == plain_tags()


@pytest.mark.parametrize(
    "words",
    [
        "out.jsonl",
        "All lines are answered in 3 runs.",
        "opt-30b.h5",
        "7,400 generated, 25,900 of prompts",  # 37 states of 200 and 700
        "Generated tokens3,840in the output",
        "6 min 10 s",  # 37 states of 10 s
        "of 1,000, 4 failed",
        "11 d 13 h",  # the longest stop
        "724 GiB",  # 37 times 21 GB over the only link
        "3 GB/s",
        "4 GB/s",
        "87 %",
        "request-7",
        "it is wrong",
        "invalid_value",
        "the disk is slow",
        "tries 3",
        "1,033",
        "0.103 hours at $3.60 an hour",
        "$96.35 for a million generated tokens of the output",
    ],
)
def test_a_page_shows_the_figures_of_its_job(words: str) -> None:
    assert words in " ".join("".join(read(made()).text).split())


def test_a_price_that_some_runs_were_not_told_is_asked_for() -> None:
    history = history_of(notes([MadeRun(1), MadeRun(1), MadeRun(1)]))
    history.runs[1].begin = replace(history.runs[1].begin, usd_per_hour=None)
    job = figures_of(history, Tally(), "out.jsonl", history.runs[-1].last_word)
    assert job.cost is None
    assert "not known of 1 of the 3 runs, so no cost is: give --price-per-hour" in page(job)
    history.set_price(1.0)
    assert figures_of(history, Tally(), "out.jsonl", history.runs[-1].last_word).cost is not None


@pytest.mark.parametrize(("done", "words"), [(0, "20 snot known"), (5, "20 s20 s at this pace"), (10, "20 s10 s")])
def test_a_pace_is_told_of_only_where_there_is_one(done: int, words: str) -> None:
    history = history_of(notes([MadeRun(1)], lines=10 if done else 1000, predicted_s=20.0))
    history.runs[0].last = replace(history.runs[0].last, lines_done=done)
    shown = "".join(read(page(figures_of(history, Tally(), "out.jsonl", BEGAN))).text)
    assert words in shown
    assert ("at this pace" in shown) == ("at this pace" in words)


@pytest.mark.parametrize(
    ("usd", "words"), [(0, "$0.00"), (0.5, "$0.50"), (1234.5, "$1,234.50"), (0.00155, "$0.00155"), (None, "not known")]
)
def test_money_is_told_to_the_cent_or_to_three_digits(usd: float | None, words: str) -> None:
    assert money(usd) == words


def test_long_tables_show_their_ends_and_say_what_is_left_out() -> None:
    text = CASES["of many runs"]()
    assert "240 runs left out" in text
    assert len(text) < 700_000
