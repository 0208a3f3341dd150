"""One self-contained page about an atlas: what is claimed of which head, on what grounds, and what the controls say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from arrcoc_sam.report.atlas.sections import (
    ablation_section,
    best_section,
    contrast_section,
    controls_section,
    levels_section,
    mass_section,
)
from arrcoc_sam.report.atlas.tables import (
    MIN_IMAGES,
    AtlasLike,
    claim_counts,
    groups,
    image_count,
    makes_claims,
    of_group,
)
from arrcoc_sam.report.document import (
    control_notice,
    demonstration_notice,
    document,
    fact_tiles,
    left_out,
    made_by,
    notice,
)
from arrcoc_sam.report.labels import metric_label
from arrcoc_sam.report.markup import Html, element, join, text
from arrcoc_sam.report.provenance import Provenance
from arrcoc_sam.report.results import ABSTAIN
from arrcoc_sam.report.writing import write_text

__all__ = ["atlas_html", "atlas_report"]


def atlas_report(
    result: AtlasLike,
    path: str | Path,
    *,
    title: str = "Atlas of attention granularity",
    notes: Sequence[str] = (),
    provenance: Provenance | None = None,
    control: bool = False,
) -> Path:
    """Write one HTML file about an atlas.

    Args:
        result: The atlas.
        path: The file; it appears whole or not at all.
        title: Of the page.
        notes: Sentences for its top.
        provenance: Versions, weights, command.
        control: The judged model has random weights: the page says at its top that it is about no trained model.

    Returns:
        The path.

    Raises:
        OutputError: The file can't be written.
    """
    return write_text(path, atlas_html(result, title=title, notes=notes, provenance=provenance, control=control))


def atlas_html(
    result: AtlasLike,
    *,
    title: str = "Atlas of attention granularity",
    notes: Sequence[str] = (),
    provenance: Provenance | None = None,
    control: bool = False,
) -> str:
    """The page that :func:`atlas_report` writes."""
    provenance = Provenance() if provenance is None else provenance
    body = [
        _header(result, title, notes, provenance, control),
        _facts(result),
        *([levels_section(result)] if makes_claims(result) else []),
        contrast_section(result),
        best_section(result),
        controls_section(result),
        mass_section(result),
        *ablation_section(result),
        _reading(result),
        *left_out([(str(row.image), str(row.error)) for row in result.images.itertuples() if row.error]),
        made_by(provenance, _made_with(result)),
    ]
    return document(
        title, body, style=files("arrcoc_sam.report.atlas").joinpath("atlas.css").read_text(encoding="utf-8")
    )


def _header(result: AtlasLike, title: str, notes: Sequence[str], provenance: Provenance, control: bool) -> Html:
    lead = (
        "At which granularity does each head of a model attend: at whole objects, at their parts, at parts of parts? "
        "A claim says that a head concentrates at a level beyond its image-independent prior, and no more."
    )
    parts = [element("h1", text(title)), element("p", text(lead), class_="lead")]
    parts += [element("p", text(note)) for note in notes]
    parts += control_notice(control)
    parts += demonstration_notice(provenance)
    if not makes_claims(result):
        parts.append(
            notice(
                "No claim.",
                f"Claims take at least {MIN_IMAGES} images with levels that the grid can measure; here there are "
                f"{image_count(result)}. What follows are numbers without a claim: with so few images they change "
                "from sample to sample.",
            )
        )
    return element("header", parts)


def _facts(result: AtlasLike) -> Html:
    judged = of_group(result, groups(result)[0])
    counts = claim_counts(judged)
    prompts = int(result.images["prompts"].sum())
    share = f"{100 * result.images['measurable'].sum() / prompts:.0f} %" if prompts else "–"
    facts = [
        ("Images measured", f"{image_count(result)} of {len(result.images)}"),
        ("Prompts measurable", share),
        ("Attention maps", str(len(judged))),
        ("Claimed", str(len(judged) - counts[ABSTAIN]) if makes_claims(result) else "none"),
        ("Abstained", f"{100 * counts[ABSTAIN] / len(judged):.0f} %"),
        ("Permutations", f"{result.info.get('num_draws', 0):,}"),
    ]
    parts = [fact_tiles(facts)]
    reasons = Counter(str(reason) for reason in judged["reason"] if reason)
    if reasons:
        listed = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
        parts.append(element("p", text(f"Why maps abstain, with their number: {listed}."), class_="soft"))
    return join(parts)


def _reading(result: AtlasLike) -> Html:
    label = metric_label(str(result.info.get("metric", "shell_contrast")))
    rate = result.info.get("false_discovery_rate", 0.05)
    confidence = result.info.get("confidence", 0.95)
    side = result.info.get("points_per_side")
    levels = "masks that people drew" if side is None else "the masks at points that are the same in all images"
    entries = [
        ("The numbers", f"{label.title}: {label.meaning or label.unit}. It is the mean over images."),
        (
            "The null",
            "What the same head scores when its attention comes from another image. Whatever a head prefers in any "
            "image, such as the middle or a few fixed cells, is in the null, too, and counts for nothing.",
        ),
        (
            "Calibrated score z",
            "Value minus the null's mean, in standard deviations of the null. Below 0 the head avoids the level.",
        ),
        (
            "A claim",
            f"Three things together: some level stands out from permutations of the images, at a false discovery rate "
            f"of {rate:g} over all maps; the level chosen on one random half of the images lies above its null on the "
            f"other half; and there its lead over the other two levels has a {100 * confidence:g} % interval above 0 "
            "(bootstrap over images).",
        ),
        (
            "abstain",
            "One of the three fails. Nothing is claimed, neither that the head has no level nor that it looks nowhere.",
        ),
        (
            "Not a causal claim",
            "A head that concentrates at a level need not be used for it. Nothing here says what the model does with "
            "what it attends to.",
        ),
        (
            "The levels",
            f"Whole, part and subpart are {levels}. Prompts whose levels the attention's grid can't tell apart count "
            "for nothing; the share of the others is above.",
        ),
        ("Sink mass", "Share of the attention in the top 1 % of the cells outside the whole."),
        ("Prefix mass", "Share of the attention on tokens that are no patch: class token, registers."),
        (
            "Toroidal shifts",
            "A second null, each map moved over its own image. It breaks a head's place preference along with the tie "
            "to the image, and so rejects too often; it is here for comparison, and no claim stands on it.",
        ),
    ]
    meanings = [join([element("dt", text(name)), element("dd", text(words))]) for name, words in entries]
    return element("section", [element("h2", text("How to read this")), element("dl", meanings, class_="meanings")])


def _made_with(result: AtlasLike) -> list[tuple[str, str]]:
    """What the atlas remembers of its run, as pairs of words."""
    info = result.info
    pairs = [
        ("Metric", info.get("metric")),
        ("Images", len(result.images)),
        ("Points a side", info.get("points_per_side")),
        ("Permutations", info.get("num_draws")),
        ("False discovery rate", info.get("false_discovery_rate")),
        ("Atlas seed", info.get("seed")),
        *(info.get("description") or {}).items(),
    ]
    return [(name.replace("_", " "), str(value)) for name, value in pairs if value is not None]
