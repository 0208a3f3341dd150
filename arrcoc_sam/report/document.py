"""What every page has: the frame of the document, notices, tiles of facts, where the numbers come from."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from arrcoc_sam.report.markup import Html, element, join, table, text
from arrcoc_sam.report.provenance import Provenance

__all__ = ["control_notice", "demonstration_notice", "document", "fact_tiles", "left_out", "made_by", "notice"]


def document(title: str, body: Sequence[Html], *, style: str = "") -> str:
    """A page that needs nothing but itself: no script, no address outside.

    Args:
        title: Of the page.
        body: Its sections.
        style: Rules after those that all pages share.
    """
    css = files("arrcoc_sam.report").joinpath("page.css").read_text(encoding="utf-8")
    head = [
        Html('<meta charset="utf-8">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html('<meta name="referrer" content="no-referrer">'),
        element("title", text(title)),
        element("style", Html(css + style)),
    ]
    parts = [element("head", head), element("body", element("main", body))]
    return "<!doctype html>\n" + element("html", parts, lang="en") + "\n"


def notice(title: str, words: str) -> Html:
    """Something that has to be read before the numbers."""
    return element("div", [element("strong", text(title)), Html(" "), text(words)], class_="notice", role="note")


def demonstration_notice(provenance: Provenance) -> list[Html]:
    """The warning that masks come from the demonstration model, where they do."""
    if not provenance.demonstration:
        return []
    return [
        notice(
            "Demonstration model.",
            "The masks come from the small embedded model, which has seen nothing but procedural scenes. On "
            "photographs it is often wrong, and so are the levels here. For real work name a real checkpoint.",
        )
    ]


def control_notice(control: bool) -> list[Html]:
    """The warning that the judged model has random weights, where it has."""
    if not control:
        return []
    return [
        notice(
            "Random weights: a control.",
            "This model was never trained. What is seen here is what its architecture does to pixels; it says nothing "
            "about the model with its weights.",
        )
    ]


def fact_tiles(facts: Sequence[tuple[str, str]]) -> Html:
    """A few numbers in large type."""
    tiles = [element("div", [element("dt", text(name)), element("dd", text(value))]) for name, value in facts]
    return element("dl", tiles, class_="facts")


def left_out(rows: Sequence[tuple[str, str]]) -> list[Html]:
    """A section of files that could not be used, with the reasons; nothing where there are none."""
    if not rows:
        return []
    cells = [[text(name), text(reason)] for name, reason in rows]
    listed = table("Files that could not be used", ["file", "reason"], cells, class_="words")
    return [element("section", [element("h2", text(f"{len(rows)} left out")), listed])]


def made_by(provenance: Provenance, more: Sequence[tuple[str, str]] = ()) -> Html:
    """A section that says what made the page.

    Args:
        provenance: Versions, weights, command.
        more: Further pairs of words before them.
    """
    pairs = [*more, *provenance.rows()]
    rows = [[text(name), element("code", text(value))] for name, value in pairs]
    made = table("What is needed to make this page again", ["what", "value"], rows, class_="words")
    return element("section", join([element("h2", text("Provenance")), made]))
