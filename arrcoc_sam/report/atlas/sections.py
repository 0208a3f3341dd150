"""The sections of an atlas's page, each from the atlas to markup."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from arrcoc_sam.hierarchy.levels import LEVELS
from arrcoc_sam.report.atlas.svg import CONTRAST_COLORMAP, Scale, interval_bar, level_map, scale_key, value_map
from arrcoc_sam.report.atlas.tables import (
    KINDS,
    AtlasLike,
    best_heads,
    calibrated_title,
    claim_counts,
    contrast_limit,
    groups,
    laid_out,
    makes_claims,
    of_group,
    threshold_names,
)
from arrcoc_sam.report.labels import ATTENTION_COLORMAP
from arrcoc_sam.report.markup import Html, chip, element, number, table, text
from arrcoc_sam.report.results import ABSTAIN

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "ablation_section",
    "best_section",
    "contrast_section",
    "controls_section",
    "levels_section",
    "mass_section",
]

_SHOWN_HEADS = 6


def levels_section(result: AtlasLike) -> Html:
    """The claims, as a sentence and as maps of layers by heads, controls beside."""
    judged = of_group(result, groups(result)[0])
    counts = claim_counts(judged)
    said = (
        f"Of {len(judged)} maps, {counts['whole']} concentrate at the whole, {counts['part']} at a part and "
        f"{counts['subpart']} at a subpart beyond their image-independent prior. Of {counts[ABSTAIN]} nothing is "
        "claimed."
    )
    pictures = []
    for group in groups(result):
        maps = of_group(result, group)
        # Controls of a single map stand in the table below.
        if len(maps) > 1:
            name = "The model" if maps is judged or group == groups(result)[0] else f"Control: {group}"
            pictures.append(_figure(name, _shares(maps), level_map(maps, label=f"Level claimed of each map, {name}")))
    parts = [
        element("h2", text("Level by layer and head")),
        element("p", text(said)),
        _level_key(),
        element("div", pictures, class_="maps"),
    ]
    return element("section", parts)


def contrast_section(result: AtlasLike) -> Html:
    """Calibrated scores of the three levels as maps of layers by heads, on one scale."""
    judged, title = of_group(result, groups(result)[0]), calibrated_title(result)
    limit = contrast_limit(judged)
    scale = Scale(-limit, limit, CONTRAST_COLORMAP, "null sd")
    pictures = []
    for level in LEVELS:
        values = judged[f"z_{level}"].to_numpy(dtype=float)
        top = f"largest {number(np.nanmax(values), 1)} null sd" if np.isfinite(values).any() else "nowhere defined"
        drawn = value_map(judged, values, scale, label=f"{title}, of each map at the {level}")
        pictures.append(_figure(level, top, drawn))
    said = (
        "How far each map's value at a level lies from what the same map scores with other images' attention, in "
        "standard deviations of that null, over all images. Hatched: not defined, because the null is constant."
    )
    parts = [
        element("h2", text(title)),
        element("p", text(said)),
        element("div", [scale_key(scale)], class_="key"),
        element("div", pictures, class_="maps"),
    ]
    return element("section", parts)


def best_section(result: AtlasLike) -> Html:
    """Heads that one half of the images chose, with what the other half says of them."""
    judged = of_group(result, groups(result)[0])
    chosen = {level: best_heads(judged, level, _SHOWN_HEADS) for level in LEVELS}
    bounds = np.concatenate([heads[["gap_low", "gap_high"]].to_numpy(dtype=float).ravel() for heads in chosen.values()])
    bounds = bounds[np.isfinite(bounds)]
    ends = (min(-1.0, *bounds.tolist()), max(1.0, *bounds.tolist())) if len(bounds) else (-1.0, 1.0)
    said = (
        "Maps and their levels were chosen on one random half of the images, largest score first. What to quote is the "
        "score on the other half, which had no say in the choice, and the lead there: z at the level minus the larger "
        "z of the other two, with its bootstrap interval over images. q is over all images."
    )
    parts = [element("h2", text("Chosen on one half of the images, reported on the other")), element("p", text(said))]
    rows = [_head_row(head, level, ends) for level in LEVELS for _, head in chosen[level].iterrows()]
    columns = ["map", "largest at", "z, choosing half", "z, reporting half", "lead [interval]", "", "q", "claimed"]
    caption = "Maps with the largest calibrated score at each level; z and lead in null sd"
    if not makes_claims(result):
        caption += "; no claim, too few images"
    parts.append(table(caption, columns, rows))
    return element("section", parts)


def controls_section(result: AtlasLike) -> Html:
    """Every group beside the others: what is claimed of it, how far it goes, and what the secondary null would say."""
    rows = []
    for position, group in enumerate(groups(result)):
        maps = of_group(result, group)
        counts = claim_counts(maps)
        largest = maps[[f"z_{level}" for level in LEVELS]].to_numpy(dtype=float)
        shifted = maps["p_toroidal"].to_numpy(dtype=float)
        rows.append(
            [
                text("the model" if position == 0 else group),
                text(len(maps)),
                *(text(counts[kind]) for kind in KINDS),
                number(float(np.nanmax(largest)) if np.isfinite(largest).any() else float("nan"), 1),
                number(float((maps["p_any"] <= 0.05).mean()), percent=True),
                number(float((shifted <= 0.05).mean()) if np.isfinite(shifted).any() else float("nan"), percent=True),
                _stack(maps),
            ]
        )
    said = (
        "Attention that can't know what is in the image, judged as the model is. A Gaussian in the middle and uniform "
        "attention are the same on every image: there is nothing to compare, and they abstain."
    )
    if any("random" in group for group in groups(result)):
        said += " Random weights show what the architecture alone does to pixels."
    columns = ["attention", "maps", *KINDS, "largest z", "p ≤ .05", "p ≤ .05, toroidal", "shares"]
    parts = [
        element("h2", text("Controls")),
        element("p", text(said)),
        table("Maps by what is claimed of them; p before correction for the number of maps", columns, rows),
    ]
    return element("section", parts)


def mass_section(result: AtlasLike) -> Html:
    """Attention that no level sees: on prefix tokens and on sinks."""
    judged = of_group(result, groups(result)[0])
    pictures = []
    for column, name in (("prefix_mass", "Prefix mass"), ("sink_mass", "Sink mass")):
        values = judged[column].to_numpy(dtype=float)
        if not np.isfinite(values).any():
            continue
        scale = Scale(0.0, max(0.01, float(np.nanmax(values))), ATTENTION_COLORMAP, "of the attention")
        drawn = value_map(judged, values, scale, label=f"{name} of each map")
        key = element("div", [scale_key(scale)], class_="key")
        pictures.append(_figure(name, f"mean {np.nanmean(values):.3f}", drawn, key))
    said = (
        "Prefix mass is the share of the attention on tokens that are no patch; the levels are judged on what is left. "
        "Sink mass is the share that the top 1 % of the cells outside the whole hold: a map with much of it may look "
        "at the same few background cells whatever the object is."
    )
    none = element("p", text("Neither is defined for these maps."), class_="soft")
    shown = element("div", pictures, class_="maps") if pictures else none
    return element("section", [element("h2", text("Prefix tokens and sinks")), element("p", text(said)), shown])


def ablation_section(result: AtlasLike) -> list[Html]:
    """What hangs on the thresholds that make levels distinct, nested and measurable; nothing without an ablation."""
    if len(result.ablation) < 2:
        return []
    rows = []
    for name, (_, row) in zip(threshold_names(result.ablation), result.ablation.iterrows(), strict=True):
        shares = {kind: float(row[f"share_{kind}"]) for kind in KINDS}
        rows.append(
            [
                text(name),
                text(int(row["num_images"])),
                number(float(row["measurable_share"]), percent=True),
                *(number(share, percent=True) for share in shares.values()),
                number(float(row["agreement"]), percent=True),
                _stack_of(shares),
            ]
        )
    columns = ["thresholds", "images", "prompts measurable", *KINDS, "same answer", "shares"]
    said = "The claims made again with other thresholds, one changed at a time."
    parts = [
        element("h2", text("What hangs on the thresholds")),
        element("p", text(said)),
        table("Share of the model's maps by what is claimed of them", columns, rows),
    ]
    return [element("section", parts)]


def _head_row(head: pd.Series, level: str, ends: tuple[float, float]) -> list[Html]:
    verdict = str(head["level"])
    gap, low, high = (float(head[key]) for key in ("gap", "gap_low", "gap_high"))
    interval = element("span", [number(gap, 1), text(" ["), number(low, 1), text(", "), number(high, 1), text("]")])
    return [
        text(head["map"]),
        text(level),
        number(float(head[f"selection_z_{level}"]), 1),
        number(float(head[f"report_z_{level}"]), 1),
        interval,
        interval_bar(gap, low, high, ends, kind=verdict),
        number(float(head["q_value"]), 4),
        chip(verdict, verdict),
    ]


def _figure(name: str, words: str, drawn: Html, key: Html | None = None) -> Html:
    caption = element("figcaption", [element("strong", text(name)), text(f", {words}")])
    return element("figure", [caption, drawn, *([] if key is None else [key])])


def _shares(maps: pd.DataFrame) -> str:
    rows, columns, _ = laid_out(maps)
    abstained = 100 * float((maps["level"] == ABSTAIN).mean())
    if len(columns) == 1:
        return f"{len(rows)} maps, {abstained:.0f} % abstain"
    return f"{len(rows)} layers × {len(columns)} heads, {abstained:.0f} % abstain"


def _level_key() -> Html:
    letters = [f"{level[0].upper()} {level}" for level in LEVELS]
    entries = [chip(words, level) for words, level in zip(letters, LEVELS, strict=True)]
    return element("div", [*entries, chip("hatched: abstain", ABSTAIN)], class_="key")


def _stack(maps: pd.DataFrame) -> Html:
    return _stack_of({kind: count / len(maps) for kind, count in claim_counts(maps).items()})


def _stack_of(shares: dict[str, float]) -> Html:
    """Shares as one bar; nothing where they are not known."""
    if not all(np.isfinite(share) for share in shares.values()):
        return text("–")
    parts = [element("i", class_=kind, style=f"width:{100 * share:.2f}%") for kind, share in shares.items()]
    return element("div", parts, class_="stack", aria_hidden="true")
