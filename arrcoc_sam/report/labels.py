"""What levels and metrics look like and are called in figures and pages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from arrcoc_sam.hierarchy.levels import LEVELS

__all__ = [
    "AREA_BOUND",
    "ATTENTION_COLORMAP",
    "LEVEL_STYLES",
    "METRIC_LABELS",
    "LevelStyle",
    "MetricLabel",
    "metric_label",
]

ATTENTION_COLORMAP = "cividis"
"""Perceptually even, and the same to readers with and without a colour vision deficiency."""


@dataclass(frozen=True)
class LevelStyle:
    """How one level is drawn; no two levels differ by their colour alone.

    Attributes:
        line: Colour of an outline over a photograph, where it has a dark casing.
        fill: Darker colour of the same hue, for bars and text on white.
        dashes: On and off lengths of the outline in units of its width; empty for a solid line.
        words: The line style in words, for legends.
    """

    line: str
    fill: str
    dashes: tuple[float, ...]
    words: str


LEVEL_STYLES: Mapping[str, LevelStyle] = dict(
    zip(
        LEVELS,
        (
            LevelStyle("#56B4E9", "#0072B2", (), "solid"),
            LevelStyle("#E69F00", "#C25100", (4.0, 1.6), "dashed"),
            LevelStyle("#F5A3CF", "#A8467D", (1.4, 1.4), "dotted"),
        ),
        strict=True,
    )
)
"""Blue, orange and purple of M. Okabe and K. Ito's colour-blind-safe set, in a light and a dark variant each."""


@dataclass(frozen=True)
class MetricLabel:
    """What a metric is called, in which unit it is, and what it says in one sentence.

    Attributes:
        title: Short name.
        unit: Unit or range, for axes.
        meaning: One sentence without a full stop.
    """

    title: str
    unit: str
    meaning: str


METRIC_LABELS: Mapping[str, MetricLabel] = {
    "shell_contrast": MetricLabel(
        "Shell contrast",
        "ln of a ratio",
        "logarithm of the attention density in a level's shell over the density just outside it",
    ),
    "information_gain": MetricLabel(
        "Information gain",
        "nats",
        "how far the share of the attention inside a level departs from the level's share of the area",
    ),
    "log_lift": MetricLabel(
        "Log lift",
        "ln(p / a)",
        "logarithm of the share p of the attention inside the level over its share a of the area",
    ),
    "mass_accuracy": MetricLabel(
        "Mass inside", "share p, | area a", "share of the attention inside the level; always favours the larger level"
    ),
    "pearson": MetricLabel("Pearson", "r over grid cells", "linear correlation of the map with the level's mask"),
    "spearman": MetricLabel("Spearman", "ρ over grid cells", "rank correlation of the map with the level's mask"),
    "normalized_ap": MetricLabel(
        "Normalised AP", "(AP − a) / (1 − a)", "average precision of the map as a detector of the level, above chance"
    ),
    "rank_accuracy": MetricLabel(
        "Rank accuracy", "(r − a) / (1 − a)", "share of the level among the map's largest cells, above chance"
    ),
    "pointing_game": MetricLabel("Pointing game", "hit or miss", "whether the map's largest cell lies in the level"),
    "auc": MetricLabel("ROC AUC", "0 to 1", "chance that a cell inside outranks one outside"),
    "shuffled_auc": MetricLabel("Shuffled AUC", "0 to 1", "as ROC AUC, with other images' levels as negatives"),
    "attention_iou": MetricLabel(
        "Attention IoU", "0 to 1", "overlap of map and level as distributions; biased by area"
    ),
    "sliced_wasserstein": MetricLabel(
        "Sliced Wasserstein",
        "image diagonals",
        "how far the attention would have to be moved to fill the level evenly; lower is closer",
    ),
}

AREA_BOUND = frozenset({"mass_accuracy"})
"""Metrics that attention without any level has at the level's share of the area: drawn with a mark there."""


def metric_label(name: str) -> MetricLabel:
    """The label of a metric; one that is not known here goes by its own name.

    Example:
        >>> metric_label("pearson").title, metric_label("my_metric").title
        ('Pearson', 'my metric')
    """
    known = METRIC_LABELS.get(name)
    return MetricLabel(name.replace("_", " "), "", "") if known is None else known
