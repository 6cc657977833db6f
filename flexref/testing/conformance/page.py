"""The page that shows a conformance result: one HTML file that needs no network and no script; it computes nothing."""

from collections import Counter

from jinja2 import Environment, PackageLoader, StrictUndefined

from flexref.testing.conformance.results import NOT_NEEDED, ConformanceResult


def page(result: ConformanceResult) -> str:
    """The whole HTML file. Names and messages come from a port: whatever is written is escaped."""
    environment = Environment(
        loader=PackageLoader("flexref.testing", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["printable"] = printable
    counted = Counter(clause.status for clause in result.clauses if clause.status != NOT_NEEDED)
    wrong = [clause for clause in result.clauses if clause.error is not None]
    template = environment.get_template("conformance.html.jinja")
    return template.render(result=result, counted=counted, wrong=wrong, tried=counted.total())


def printable(text: str) -> str:
    """A text without what no page can show."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
