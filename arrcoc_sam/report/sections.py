"""The part of a page that shows one image: its prompts, masks, maps, bars and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from arrcoc_sam.errors import ShapeError, describe, explain
from arrcoc_sam.hierarchy.levels import LEVELS
from arrcoc_sam.report import svg
from arrcoc_sam.report.bars import bar_block, bar_scale, metric_bars
from arrcoc_sam.report.drawing import display_peak, level_array, level_shares, relative_density
from arrcoc_sam.report.labels import metric_label
from arrcoc_sam.report.markup import Html, chip, element, number, table, text
from arrcoc_sam.report.results import ABSTAIN, GranularityLike

__all__ = ["ReportItem", "answers_table", "item_section", "verdict"]


@dataclass(frozen=True)
class ReportItem:
    """A result with what a page says about it besides.

    Attributes:
        result: The analysis of one image.
        name: What the image is called, a file name for instance.
        note: A sentence about it.
        mask_scores: More columns for the table of the masks, each (K, 3): their stability, say.
        prompt_names: One a prompt; "Prompt 1", … where there are none.
    """

    result: GranularityLike
    name: str
    note: str | None = None
    mask_scores: Mapping[str, Float[Tensor, "K 3"]] = field(default_factory=dict)
    prompt_names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        expected = (len(self.result.masks), len(LEVELS))
        for name, values in self.mask_scores.items():
            if tuple(values.shape) != expected:
                raise ShapeError(explain(f"mask_scores[{name!r}] is {describe(values)}", f"shape {expected}"))
        if self.prompt_names is not None and len(self.prompt_names) != expected[0]:
            raise ShapeError(
                explain(f"{len(self.prompt_names)} prompt_names", f"one for each of {expected[0]} prompts")
            )


def item_section(item: ReportItem, *, number_of: int, max_maps: int) -> Html:
    """Everything about one image.

    Args:
        item: The result.
        number_of: Which item of the page it is; makes names in the page unique.
        max_maps: So many maps are drawn for each prompt, and so many stand in the table.
    """
    result, image_name = item.result, f"image{number_of}"
    height, width = result.image.shape[:2]
    facts = f"{width} × {height} px, {len(result.masks)} prompt{'s' if len(result.masks) != 1 else ''}, "
    facts += f"{len(result.maps)} map{'s' if len(result.maps) != 1 else ''} on a grid of "
    facts += f"{result.maps.grid_hw[1]} × {result.maps.grid_hw[0]} cells"
    parts = [element("h2", text(item.name)), element("p", text(facts), class_="soft")]
    if item.note is not None:
        parts.append(element("p", text(item.note)))
    photograph = svg.photograph(result.image, name=image_name)
    scales = {name: bar_scale(values[:max_maps]) for name, values in result.metrics.items()}
    for prompt in range(len(result.masks)):
        photo = photograph if prompt == 0 else svg.reuse(image_name)
        parts += _prompt(item, prompt, photo, image_name, scales, max_maps)
    return element("section", parts, id=f"item{number_of}", aria_label=item.name)


def verdict(result: GranularityLike, index: int, prompt: int) -> tuple[str, str]:
    """The answer for a map and a prompt, and what it stands on, in words that claim no more than was tested."""
    match = str(result.best_match[index, prompt])
    if match == ABSTAIN:
        if not bool(result.measurable[prompt]):
            return match, "the grid cannot tell these levels apart"
        return match, "no level stands out from other images" if result.calibrated else "no shell contrast above 0"
    if not result.calibrated or result.p_value is None:
        return match, "largest shell contrast, not calibrated"
    p = float(result.p_value[index, prompt, LEVELS.index(match)])
    return match, f"beyond its image-independent prior, p = {p:.3g} for this map and click alone"


def _prompt(
    item: ReportItem,
    prompt: int,
    photo: Html,
    image_name: str,
    scales: Mapping[str, tuple[float, float]],
    max_maps: int,
) -> list[Html]:
    result = item.result
    size_hw = (result.image.shape[0], result.image.shape[1])
    outline_name = f"{image_name}-outlines{prompt}"
    marks: list[Html] = []
    title = f"Prompt {prompt + 1}" if item.prompt_names is None else item.prompt_names[prompt]
    if result.points_xy is not None:
        x, y = result.points_xy[prompt].tolist()
        marks.append(svg.click((x, y), size_hw))
        title += f": click at ({x:.4g}, {y:.4g}) px"
    drawn = svg.outlines(level_array(result.masks, prompt), name=outline_name)
    first = _card(
        svg.panel(size_hw, [photo, drawn, *marks], label=f"{item.name} with the outlines of whole, part and subpart"),
        element("h4", text("The three masks")),
        Html(""),
        _mask_bars(item, prompt),
    )
    cards = [first]
    shares = level_shares(result.maps, result.masks, prompt).tolist()
    for index in range(min(len(result.maps), max_maps)):
        density = relative_density(result.maps, index, prompt)
        top = display_peak(density)
        match, reason = verdict(result, index, prompt)
        name = result.maps.names[index]
        layers = [
            svg.reuse(image_name),
            svg.map_image(density, result.maps.transform, top=top),
            svg.reuse(outline_name),
            *marks,
        ]
        body = [element("p", text(f"{reason}; colours to {top:.2g} × uniform"), class_="soft")]
        for metric, values in result.metrics.items():
            row = values[index, prompt].detach().cpu().double().tolist()
            body.append(metric_bars(metric, row, scales[metric], shares))
        picture = svg.panel(size_hw, layers, label=f"Attention map {name} over {item.name}: {match}, {reason}")
        cards.append(_card(picture, element("h4", text(name)), chip(match, match), body))
    parts = [element("h3", text(title)), element("div", cards, class_="cards")]
    hidden = len(result.maps) - max_maps
    if hidden > 0:
        said = f"The first {max_maps} of {len(result.maps)} maps; all of them are in the table of results."
        parts.append(element("p", text(said), class_="soft"))
    return [*parts, _mask_table(item, prompt), _value_table(item, prompt, max_maps)]


def _card(picture: Html, title: Html, answer: Html, body: Sequence[Html]) -> Html:
    head = element("div", [title, answer], class_="head")
    return element("div", [picture, element("div", [head, *body], class_="body")], class_="card")


def _mask_bars(item: ReportItem, prompt: int) -> list[Html]:
    """What is known of the three masks, as bars from 0 to 1."""
    hierarchy = item.result.hierarchy
    size = item.result.masks[0, 0].numel()
    known = {"Predicted IoU": ("raw", hierarchy.scores[prompt])}
    known |= {name[:1].upper() + name[1:]: ("", values[prompt]) for name, values in item.mask_scores.items()}
    known["Share of the image"] = ("", hierarchy.areas[prompt] / size)
    blocks = []
    for title, (unit, values) in known.items():
        if bool(values.isnan().all()):  # masks that no model made have no predicted IoU
            continue
        blocks.append(bar_block(title, unit, values.detach().cpu().double().tolist(), (0.0, 1.0)))
    return blocks


def _mask_table(item: ReportItem, prompt: int) -> Html:
    hierarchy = item.result.hierarchy
    size = item.result.masks[0, 0].numel()
    rows = []
    for column, level in enumerate(LEVELS):
        inside = float(hierarchy.nesting[prompt, column - 1]) if column else float("nan")
        rows.append(
            [
                chip(level, level),
                number(float(hierarchy.scores[prompt, column])),
                *(number(float(values[prompt, column])) for values in item.mask_scores.values()),
                number(float(hierarchy.areas[prompt, column]) / size, percent=True),
                number(inside, percent=True),
                text("yes" if bool(hierarchy.distinct[prompt, column]) else "no"),
            ]
        )
    columns = ["level", "predicted IoU", *item.mask_scores, "share of the image", "inside the level above", "distinct"]
    return table("The three masks as they came, before they are clipped to nested sets", columns, rows)


def _value_table(item: ReportItem, prompt: int, max_maps: int) -> Html:
    result = item.result
    calibrated = result.z is not None and result.p_value is not None
    shares = level_shares(result.maps, result.masks, prompt)
    columns = ["map", "level", *(metric_label(name).title for name in result.metrics), "area a"]
    columns += ["z", "p"] if calibrated else []
    columns += ["sink mass", "answer"]
    rows = []
    for index in range(min(len(result.maps), max_maps)):
        match, _ = verdict(result, index, prompt)
        for column, level in enumerate(LEVELS):
            row = [text(result.maps.names[index]), text(level)]
            row += [number(float(values[index, prompt, column]), 4) for values in result.metrics.values()]
            row.append(number(float(shares[column])))
            if result.z is not None and result.p_value is not None:
                row += [
                    number(float(result.z[index, prompt, column]), 2),
                    number(float(result.p_value[index, prompt, column])),
                ]
            row += (
                [number(float(result.sink_mass[index, prompt])), chip(match, match)]
                if not column
                else [Html(""), Html("")]
            )
            rows.append(row)
    return table("Every metric by map and level; a dash where it is not defined", columns, rows, headers=2)


def answers_table(counts: Mapping[str, Mapping[str, int]]) -> Html:
    """How often each map answered which level, over all images and prompts.

    Args:
        counts: Map, then level or "abstain", to a number of prompts.
    """
    kinds = (*LEVELS, ABSTAIN)
    rows = []
    for name, of in counts.items():
        total = sum(of.values())
        stack = element(
            "div",
            [element("i", class_=kind, style=f"width:{100 * of.get(kind, 0) / total:.2f}%") for kind in kinds],
            class_="stack",
            aria_hidden="true",
        )
        cells = [text(of.get(kind, 0)) for kind in kinds]
        rows.append([text(name), *cells, number(of.get(ABSTAIN, 0) / total, percent=True), stack])
    columns = ["map", *kinds, "share abstained", "shares"]
    return table("Answers by map, counted over images and prompts", columns, rows)
