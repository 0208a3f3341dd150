"""One self-contained page about results: no script, no address outside, everything inside the file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from arrcoc_sam.errors import InputError, explain
from arrcoc_sam.hierarchy.levels import LEVELS
from arrcoc_sam.report.document import control_notice, document, fact_tiles, left_out, made_by, notice
from arrcoc_sam.report.labels import LEVEL_STYLES, metric_label
from arrcoc_sam.report.markup import Html, element, join, text
from arrcoc_sam.report.provenance import Provenance
from arrcoc_sam.report.results import ABSTAIN, GranularityLike
from arrcoc_sam.report.sections import ReportItem, answers_table, item_section
from arrcoc_sam.report.svg import colour_scale
from arrcoc_sam.report.writing import write_text

__all__ = ["GranularityPage", "ReportItem", "granularity_report"]

_TITLE = "Attention granularity"


def granularity_report(
    results: Iterable[GranularityLike | ReportItem],
    path: str | Path,
    *,
    command: str | None = None,
    title: str = _TITLE,
    notes: Sequence[str] = (),
    provenance: Provenance | None = None,
    max_items: int = 50,
    max_maps: int = 36,
) -> Path:
    """Write one HTML file about results: images, masks, maps, bars, tables, and what made them.

    Args:
        results: Results, or results with a name and more; results are read one at a time and not kept.
        path: The file; it appears whole or not at all.
        command: The command line that made the results; shorthand for a provenance that says no more.
        title: The page's.
        notes: Sentences for the top of the page.
        provenance: Versions, weights, seed, command.
        max_items: So many images are shown in full; all of them count in the summary.
        max_maps: So many maps are drawn for each prompt.

    Returns:
        The path.

    Raises:
        InputError: No result at all.
        OutputError: The file can't be written.
    """
    page = GranularityPage(
        title=title,
        notes=notes,
        provenance=Provenance(command=command) if provenance is None else provenance,
        max_items=max_items,
        max_maps=max_maps,
    )
    for position, result in enumerate(results):
        page.add(result if isinstance(result, ReportItem) else ReportItem(result, name=f"Image {position + 1}"))
    return page.write(path)


class GranularityPage:
    """A page that is filled one result at a time, so that images need not be kept.

    Args:
        title: The page's.
        notes: Sentences for its top.
        provenance: Versions, weights, seed, command.
        max_items: So many results are shown in full.
        max_maps: So many maps are drawn for each prompt.
        control: The attention is of a model with random weights: the page says so at its top.
    """

    def __init__(
        self,
        *,
        title: str = _TITLE,
        notes: Sequence[str] = (),
        provenance: Provenance | None = None,
        max_items: int = 50,
        max_maps: int = 36,
        control: bool = False,
    ) -> None:
        if max_items < 1 or max_maps < 1:
            raise InputError(explain(f"max_items={max_items}, max_maps={max_maps}", "both at least 1"))
        self.title = title
        self.notes = tuple(notes)
        self.provenance = Provenance() if provenance is None else provenance
        self.max_items = max_items
        self.max_maps = max_maps
        self.control = control
        self.skipped: list[tuple[str, str]] = []
        self._sections: list[Html] = []
        self._appended: list[Html] = []
        self._answers: dict[str, Counter[str]] = {}
        self._metrics: dict[str, None] = {}
        self._num_items = self._num_prompts = 0
        self._all_calibrated = True

    def add(self, item: ReportItem) -> None:
        """Take in one result."""
        result = item.result
        for index, name in enumerate(result.maps.names):
            self._answers.setdefault(name, Counter()).update(str(match) for match in result.best_match[index])
        self._metrics.update(dict.fromkeys(result.metrics))
        self._all_calibrated &= result.calibrated
        self._num_prompts += len(result.masks)
        if self._num_items < self.max_items:
            self._sections.append(item_section(item, number_of=self._num_items, max_maps=self.max_maps))
        self._num_items += 1

    def append(self, section: Html) -> None:
        """Put a section of another kind after those of the results; it counts in no number of the page."""
        self._appended.append(section)

    def skip(self, name: str, reason: str) -> None:
        """List something that could not be analysed."""
        self.skipped.append((name, reason))

    @property
    def abstained(self) -> float:
        """Share of the answers that are "abstain"."""
        return sum(of[ABSTAIN] for of in self._answers.values()) / max(
            1, sum(of.total() for of in self._answers.values())
        )

    @property
    def calibrated(self) -> bool:
        """Whether every result stands on a comparison with other images."""
        return self._all_calibrated

    @property
    def answers(self) -> dict[str, dict[str, int]]:
        """How often each map answered which level or "abstain"."""
        return {name: {kind: of[kind] for kind in (*LEVELS, ABSTAIN)} for name, of in self._answers.items()}

    def write(self, path: str | Path) -> Path:
        """Write the page, whole or not at all.

        Raises:
            InputError: Nothing was added.
            OutputError: The file can't be written.
        """
        return write_text(path, self.html())

    def html(self) -> str:
        """The page."""
        if not self._num_items:
            raise InputError(explain("no result to report on", "at least one"))
        hidden = self._num_items - len(self._sections)
        more = f"{hidden} more images are in the table of results and count above, but are not shown on this page."
        body = [
            self._header(),
            self._summary(),
            self._reading(),
            *self._sections,
            *([element("p", text(more), class_="soft")] if hidden else []),
            *self._appended,
            *left_out(self.skipped),
            made_by(self.provenance),
        ]
        return document(self.title, body, style=f".key .scale{{background:{colour_scale()}}}")

    def _header(self) -> Html:
        lead = (
            "For each attention map: does its attention work at the whole object, at a part of it, or at a part of the "
            "part? The three levels are the masks that a promptable segmenter answers one click with."
        )
        parts = [element("h1", text(self.title)), element("p", text(lead), class_="lead")]
        parts += [element("p", text(note)) for note in self.notes]
        parts += control_notice(self.control)
        if self.provenance.demonstration:
            parts.append(
                notice(
                    "Demonstration model.",
                    "The masks come from the small embedded model, which has seen nothing but procedural scenes. On "
                    "photographs it is often wrong: look at the outlines before you read a number. For real work name "
                    "a real checkpoint.",
                )
            )
        if not self._all_calibrated:
            parts.append(
                notice(
                    "Not calibrated.",
                    "These answers rank the levels of one image and are not compared with other images. A map that "
                    "looks alike on every image, brighter in the middle for instance, gets such answers too.",
                )
            )
        return element("header", parts)

    def _summary(self) -> Html:
        facts = [
            ("Images", str(self._num_items)),
            ("Prompts", str(self._num_prompts)),
            ("Attention maps", str(len(self._answers))),
            ("Abstained", f"{100 * self.abstained:.0f} %"),
            ("Calibrated", "yes" if self._all_calibrated else "no"),
        ]
        return join(
            [fact_tiles(facts), element("section", [element("h2", text("Answers")), answers_table(self._answers)])]
        )

    def _reading(self) -> Html:
        levels = (
            "A level is what its outline encloses; its shell is that without the next level inside. Attention is "
            "measured on the map's own grid, with masks averaged by area to it. An answer names the level whose shell "
            "holds the attention most densely compared with what lies just outside it (shell contrast)."
        )
        abstentions = (
            "“abstain” means that no level is named: the three masks do not nest, the grid is too coarse to tell them "
            "apart, or no level stands out."
        )
        limits = (
            "A calibrated answer means that the map concentrates at a level beyond its image-independent prior. No "
            "answer here says that the model uses what it attends to, and one image supports no claim about a map: "
            "that takes at least 30 images, and the comparison with other images' attention."
        )
        parts = [element("h2", text("How to read this")), _key()]
        parts += [element("p", text(words)) for words in (levels, abstentions, limits)]
        labels = [metric_label(name) for name in self._metrics]
        meanings = [
            join([element("dt", text(label.title)), element("dd", text(f"{label.meaning}."))])
            for label in labels
            if label.meaning
        ]
        sinks = "share of the attention in the top 1 % of the cells outside the whole."
        meanings.append(join([element("dt", text("Sink mass")), element("dd", text(sinks))]))
        return element("section", [*parts, element("dl", meanings, class_="meanings")])


def _key() -> Html:
    """Line styles of the levels and the colour scale of the maps."""
    entries = []
    for level, style in LEVEL_STYLES.items():
        dashes = " ".join(f"{2.2 * length:g}" for length in style.dashes) or None
        line = [
            element("path", d="M2 7H46", class_="casing"),
            element("path", d="M2 7H46", class_="line", stroke=style.line, stroke_dasharray=dashes),
        ]
        sample = element("svg", line, viewBox="0 0 48 14", aria_hidden="true")
        entries.append(element("span", [sample, text(f"{level} ({style.words})")]))
    scale = element("span", class_="scale")
    entries.append(element("span", [text("attention 0"), scale, text("top of the map's scale")]))
    return element("div", entries, class_="key")
