"""One self-contained page about a filter: what it dropped and why, by class, and what the extremes look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, UInt8

from arrcoc_sam.report.document import demonstration_notice, document, fact_tiles, made_by, notice
from arrcoc_sam.report.histogram import histogram, histogram_key
from arrcoc_sam.report.markup import Html, element, number, table, text
from arrcoc_sam.report.provenance import Provenance
from arrcoc_sam.report.svg import mask_outline, panel, photograph
from arrcoc_sam.report.writing import write_text

__all__ = ["FilterFigures", "MaskPicture", "filter_report"]

_CLASSES = 60
_RULES = {
    "min_quality": "quality at least",
    "min_bound": "lower bound at least",
    "min_stability": "stability at least",
    "min_area": "area at least, pixels",
    "max_area_share": "share of the image at most",
    "class_quantile": "not among the worst of its class, share",
    "crowd": "no crowd",
}


@dataclass(frozen=True, eq=False)
class MaskPicture:
    """A mask to be looked at.

    Attributes:
        name: Its id.
        image: RGB.
        mask: Bool, of the image's size.
        words: What is said below it.
    """

    name: str
    image: UInt8[np.ndarray, "H W 3"]
    mask: Bool[np.ndarray, "H W"]
    words: str


@dataclass(frozen=True, eq=False)
class FilterFigures:
    """What the page is made of.

    Attributes:
        scores: ``quality``, ``quality_kind``, ``stability`` and ``area_share`` of all scored masks.
        kept: Which of them stay.
        rules: Value of each rule by name.
        reasons: A row a rule: ``rule``, ``failed``, ``alone``.
        classes: A row a class: ``category``, ``masks``, ``dropped``, ``dropped_share``, ``kept_quality``,
            ``dropped_quality``.
        num_unscored: Masks that have no score.
        num_lost_images: Images that had masks and keep none.
        best: Pictures of the best masks, the best first.
        worst: Pictures of the worst, the worst first.
        unscored_kept: Whether masks without a score stay.
        provenance: Versions, weights, command.
        dataset: Its path.
    """

    scores: pd.DataFrame
    kept: Bool[np.ndarray, " K"]
    rules: Mapping[str, float | int | str]
    reasons: pd.DataFrame
    classes: pd.DataFrame
    num_unscored: int
    num_lost_images: int
    dataset: str
    best: Sequence[MaskPicture] = ()
    worst: Sequence[MaskPicture] = ()
    unscored_kept: bool = False
    provenance: Provenance = field(default_factory=Provenance)


def filter_report(figures: FilterFigures, path: str | Path, *, title: str = "Masks by quality") -> Path:
    """Write the page, whole or not at all.

    Raises:
        OutputError: It can't be written.
    """
    body = [
        _header(figures, title),
        _facts(figures),
        _reasons(figures),
        _spread(figures),
        _classes(figures),
        *_pictures("The best", figures.best),
        *_pictures("The worst", figures.worst),
        made_by(figures.provenance, [("Data set", figures.dataset)]),
    ]
    return write_text(path, document(title, body))


def _header(figures: FilterFigures, title: str) -> Html:
    kind = "bound" if figures.scores.empty else str(figures.scores["quality_kind"].iloc[0])
    lead = (
        "Quality is a calibrated estimate of a mask's IoU with the object that it shows."
        if kind == "calibrated"
        else "Quality is a lower bound on a mask's IoU with the object that it shows; it holds as far as the "
        "segmenter's own prediction of IoU does."
    )
    limits = "A perfect mask of another object than the one meant is a good mask here: image and mask don't tell."
    parts = [element("h1", text(title)), element("p", text(lead), class_="lead"), element("p", text(limits))]
    parts += demonstration_notice(figures.provenance)
    if figures.num_unscored:
        words = f"{figures.num_unscored:,} masks have no score: their image or they themselves could not be read. "
        words += "They stay." if figures.unscored_kept else "They are dropped; the list of what was dropped says why."
        parts.append(notice("Not scored.", words))
    return element("header", parts)


def _facts(figures: FilterFigures) -> Html:
    kept, total = int(figures.kept.sum()), len(figures.kept)
    share = f" ({100 * (total - kept) / total:.1f} %)" if total else ""
    facts = [
        ("Masks scored", f"{total:,}"),
        ("Kept", f"{kept:,}"),
        ("Dropped", f"{total - kept:,}{share}"),
        ("Images left without masks", f"{figures.num_lost_images:,}"),
    ]
    return fact_tiles(facts)


def _reasons(figures: FilterFigures) -> Html:
    rows = [
        [
            text(_RULES.get(row["rule"], row["rule"])),
            text(figures.rules.get(row["rule"], "")),
            text(f"{row['failed']:,}"),
            text(f"{row['alone']:,}"),
        ]
        for row in figures.reasons.to_dict("records")
    ]
    columns = ["rule", "value", "masks that fail it", "that fail it alone"]
    return element("section", [element("h2", text("Why masks were dropped")), table("Rules", columns, rows)])


def _spread(figures: FilterFigures) -> Html:
    kept = figures.kept
    drawn = []
    for column, title, rule in (
        ("quality", "Quality", "min_quality"),
        ("stability", "Stability", "min_stability"),
        ("area_share", "Share of the image", "max_area_share"),
    ):
        values = figures.scores[column].to_numpy(np.float64)
        limit = figures.rules.get(rule)
        mark = float(limit) if isinstance(limit, (int, float)) else None
        drawn.append(histogram(values[kept], values[~kept], title=title, unit=title.lower(), limit=mark))
    grid = element("div", drawn, class_="cards", style="grid-template-columns:repeat(auto-fill,minmax(20rem,1fr))")
    return element("section", [element("h2", text("How scores are spread")), histogram_key(), grid])


def _classes(figures: FilterFigures) -> Html:
    rows = [
        [
            text(row["category"]),
            text(f"{row['masks']:,}"),
            text(f"{row['dropped']:,}"),
            number(row["dropped_share"], percent=True),
            number(row["kept_quality"]),
            number(row["dropped_quality"]),
        ]
        for row in figures.classes.head(_CLASSES).to_dict("records")
    ]
    columns = ["class", "masks", "dropped", "share", "mean quality of those kept", "of those dropped"]
    parts = [element("h2", text("By class")), table("What was dropped of each class", columns, rows)]
    if len(figures.classes) > _CLASSES:
        more = f"{len(figures.classes) - _CLASSES:,} classes that lose fewer masks are not shown."
        parts.append(element("p", text(more), class_="soft"))
    return element("section", parts)


def _pictures(title: str, pictures: Sequence[MaskPicture]) -> list[Html]:
    if not pictures:
        return []
    cards = []
    for place, picture in enumerate(pictures):
        height, width = picture.mask.shape
        name = f"{title.split()[-1]}-{place}"
        layers = [photograph(picture.image, name=name, max_side=480), mask_outline(picture.mask)]
        drawn = panel((height, width), layers, label=f"{picture.name}: {picture.words}")
        words = [element("h4", text(picture.name)), element("p", text(picture.words), class_="soft")]
        cards.append(element("div", [drawn, element("div", words, class_="body")], class_="card"))
    return [element("section", [element("h2", text(title)), element("div", cards, class_="cards")])]
