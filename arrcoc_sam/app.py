"""The web page: click on a picture and see its levels and where attention lies; draw a mask and see how good it is.

:class:`Desk` does the work and knows nothing of the page; :func:`build_page` lays it out; :func:`serve` opens it.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, UInt8
from PIL import Image

from arrcoc_sam.attention import AttentionSource, load_attention
from arrcoc_sam.datasets.folder import read_mask_file
from arrcoc_sam.errors import (
    ArrcocSamError,
    InputError,
    MissingExtraError,
    ShapeError,
    UnknownNameError,
    describe,
    explain,
)
from arrcoc_sam.granularity import GranularityAnalyzer
from arrcoc_sam.hierarchy.levels import LEVELS
from arrcoc_sam.images import load_image
from arrcoc_sam.prompts import Prompts
from arrcoc_sam.quality import MaskQualityEstimator, QualityCalibration, fitting_calibration
from arrcoc_sam.report.panels import outline_masks, show_image
from arrcoc_sam.report.provenance import Provenance
from arrcoc_sam.segmenters.base import Segmenter
from arrcoc_sam.segmenters.embedding import ImageEmbedding

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Desk", "build_page", "painted", "require_gradio", "serve"]

_EMBEDDINGS = 4
"""Pictures whose embedding is kept, so that the next click is instant."""

_SOURCES = 4
"""Attention sources that are kept, models and all."""

_EXAMPLES = ("astronaut", "chelsea", "coffee", "camera")
_SCORES = {
    "quality": "quality",
    "quality_kind": "kind",
    "lower_bound": "lower bound",
    "upper_bound": "upper bound",
    "predicted_iou": "predicted IoU",
    "alignment_iou": "IoU with the closest answer",
    "stability": "stability",
}


class Desk:
    """A segmenter at work for a page: pictures are encoded once, attention sources made once, one visitor at a time.

    Args:
        segmenter: Who answers clicks and judges masks.
        attention: Sources on offer, by name; the first one is chosen at first.
        only_these: No others; without it a visitor may name any transformer.
        calibration: Of masks' scores; by default the embedded model's for the embedded model, and none for others.
        random_weights: Transformers are asked with random weights: a control, and all that there is without a network.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        *,
        attention: Sequence[str] = ("relevance",),
        only_these: bool = False,
        calibration: QualityCalibration | None = None,
        random_weights: bool = False,
    ) -> None:
        if not attention:
            raise InputError(explain("no attention source", "at least one, such as relevance"))
        self.segmenter, self.attention, self.only_these = segmenter, tuple(attention), only_these
        self.estimator = MaskQualityEstimator(segmenter, calibration=calibration or fitting_calibration(segmenter))
        self._random_weights = random_weights
        self._embeddings: dict[str, ImageEmbedding] = {}
        self._sources: dict[str, AttentionSource] = {}
        self._lock = threading.Lock()  # visitors come at once; what a model remembers of a call is its own

    @torch.no_grad()
    def levels(
        self, image: UInt8[np.ndarray, "H W 3"], point_xy: Sequence[float | int], attention: str
    ) -> tuple[Figure, pd.DataFrame]:
        """What a click means, and where attention lies in it.

        Args:
            image: RGB.
            point_xy: The click, in pixels.
            attention: A source by name: "relevance", "timm:…" or "hf:…".

        Returns:
            The figure of the analysis; one row a level: predicted IoU, share of the image, whether it is distinct.

        Raises:
            ArrcocSamError: A click beside the image, or no such source.
        """
        with self._lock:
            return self._levels(image, point_xy, attention)

    @torch.no_grad()
    def _levels(
        self, image: UInt8[np.ndarray, "H W 3"], point_xy: Sequence[float | int], attention: str
    ) -> tuple[Figure, pd.DataFrame]:
        prompts = Prompts(points_xy=[[[float(point_xy[0]), float(point_xy[1])]]], labels=[[1]])
        hierarchy = self.segmenter.decode(self._embedding(image), prompts).hierarchy()
        analyzer = GranularityAnalyzer(self.segmenter, self._source(attention))
        result = analyzer.analyze(image, prompts.points_xy[:, 0], hierarchy=hierarchy)  # type: ignore[index]
        table = pd.DataFrame(
            {
                "level": LEVELS,
                "predicted IoU": hierarchy.scores[0].double().cpu().numpy().round(3),
                "share of the image": (hierarchy.areas[0].double() / image[..., 0].size).cpu().numpy().round(4),
                "distinct": np.where(hierarchy.distinct[0].cpu().numpy(), "yes", "no, as the level above"),
            }
        )
        return result.plot(), table

    @torch.no_grad()
    def score(self, image: UInt8[np.ndarray, "H W 3"], mask: Bool[np.ndarray, "H W"]) -> tuple[Figure, pd.DataFrame]:
        """How good a mask is.

        Args:
            image: RGB.
            mask: Of the image's size.

        Returns:
            The mask beside the segmenter's closest answer; one row a score.

        Raises:
            ShapeError: Another size.
            InputError: An empty mask.
        """
        if mask.shape != image.shape[:2]:
            raise ShapeError(
                explain(f"the mask is {describe(mask)}", f"{image.shape[0]} rows, {image.shape[1]} columns")
            )
        if not mask.any():
            raise InputError(
                explain("an empty mask", "at least one pixel", "paint on the object, or give a mask's file")
            )
        with self._lock:
            quality = self.estimator.estimate(self._embedding(image), mask[None])
        row = quality.to_frame().iloc[0]
        values = {words: row[name] for name, words in _SCORES.items()}
        if np.isfinite(row["interval_low"]):
            interval = f"{row['interval_low']:.3f} to {row['interval_high']:.3f}"
            values = {"quality": values["quality"], "its interval": interval} | values
        shown = [value if isinstance(value, str) else f"{value:.3f}" for value in values.values()]
        closest = quality.best_sam_masks[0]
        return _compared(image, mask, np.asarray(closest)), pd.DataFrame({"score": list(values), "value": shown})

    def _embedding(self, image: UInt8[np.ndarray, "H W 3"]) -> ImageEmbedding:
        key = hashlib.sha256(np.ascontiguousarray(image).tobytes() + str(image.shape).encode()).hexdigest()
        found = self._embeddings.pop(key, None)
        self._embeddings[key] = self.segmenter.encode(image) if found is None else found
        while len(self._embeddings) > _EMBEDDINGS:
            del self._embeddings[next(iter(self._embeddings))]
        return self._embeddings[key]

    def _source(self, name: str) -> AttentionSource:
        if name not in self.attention and (self.only_these or not name.startswith(("timm:", "hf:"))):
            others = "" if self.only_these else ", timm:MODEL or hf:MODEL"
            raise UnknownNameError(explain(f"no attention is called {name!r}", f"{', '.join(self.attention)}{others}"))
        if name not in self._sources:
            while len(self._sources) >= _SOURCES:
                del self._sources[next(iter(self._sources))]
            options: dict[str, Any] = {}
            if name.startswith(("timm:", "hf:")):
                options = {"pretrained": not self._random_weights, "heads": "mean"}
            self._sources[name] = load_attention(name, **options)
        return self._sources[name]


def _compared(image: np.ndarray, mask: np.ndarray, closest: np.ndarray) -> Figure:
    """A mask, and the segmenter's closest answer, each outlined on the picture."""
    from matplotlib.figure import Figure

    height, width = mask.shape
    figure = Figure(figsize=(8.0, min(8.0, 4.2 * height / width + 0.4)), layout="constrained", dpi=110)
    for panel, (words, shown) in zip(
        figure.subplots(1, 2), (("the mask", mask), ("the segmenter's closest answer", closest)), strict=True
    ):
        show_image(panel, image)
        outline_masks(panel, np.stack([shown, np.zeros_like(shown), np.zeros_like(shown)]))
        panel.set_title(words, fontsize=10)
    return figure


def painted(drawing: dict[str, Any] | None) -> tuple[UInt8[np.ndarray, "H W 3"], Bool[np.ndarray, "H W"]]:
    """The picture under a drawing, and what is painted on it.

    Args:
        drawing: What Gradio's image editor gives: ``background`` and ``layers``, RGBA.

    Raises:
        InputError: There is no picture.
    """
    if drawing is None or drawing.get("background") is None:
        raise InputError(explain("no picture", "one to paint on", "drop one on the page, or take an example"))
    background = np.asarray(drawing["background"], dtype=np.uint8)
    mask = np.zeros(background.shape[:2], dtype=bool)
    for layer in drawing.get("layers") or ():
        mask |= np.asarray(layer)[..., 3] > 0
    return load_image(Image.fromarray(background)), mask  # colours under transparent pixels mean nothing


def build_page(desk: Desk) -> Any:
    """The page, ready for ``launch``.

    Args:
        desk: Does the work.

    Returns:
        ``gradio.Blocks``.

    Raises:
        MissingExtraError: Gradio is not installed.
    """
    gr = require_gradio()

    def told(work: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(work)
        def answer(*given: Any) -> Any:
            try:
                return work(*given)
            except ArrcocSamError as error:
                raise gr.Error(str(error), print_exception=False) from error

        return answer

    @told
    def clicked(image: np.ndarray | None, source: str | None, event: Any) -> tuple[Any, ...]:
        place = tuple(event.index)
        return (*asked(image, source, place), place)

    clicked.__annotations__["event"] = gr.SelectData  # Gradio looks for it there

    @told
    def again(image: np.ndarray | None, source: str | None, place: Sequence[float] | None) -> tuple[Any, ...]:
        return (None, None) if place is None else asked(image, source, place)

    def asked(image: np.ndarray | None, source: str | None, place: Sequence[float]) -> tuple[Any, ...]:
        if image is None:
            raise InputError(explain("no picture", "one to click on", "drop one on the page, or take an example"))
        return desk.levels(image, place, (source or "").strip())

    @told
    def scored(drawing: dict[str, Any] | None, file: str | None) -> tuple[Any, ...]:
        image, mask = painted(drawing)
        if file is not None and mask.any():
            raise InputError(explain("a painting and a file", "one of them", "clear the other"))
        return desk.score(image, mask if file is None else read_mask_file(Path(file)).numpy())

    first, *_ = examples = [str(path) for path in _example_files()]
    with gr.Blocks(title="arrcoc_sam", analytics_enabled=False, fill_width=True) as page:
        gr.Markdown(_words(desk.segmenter))
        with gr.Tab("Levels and attention"), gr.Row():
            with gr.Column(scale=2, min_width=320):
                picture = gr.Image(first, label="Click on an object", sources=["upload", "clipboard"], format="png")
                source = gr.Dropdown(
                    list(desk.attention),
                    value=desk.attention[0],
                    allow_custom_value=not desk.only_these,
                    label="Attention",
                    info=None if desk.only_these else "relevance is ARR-COC's; or type timm:MODEL or hf:MODEL",
                )
                gr.Examples([[path] for path in examples], picture, label="Photographs")
            with gr.Column(scale=3, min_width=480):
                figure = gr.Plot(show_label=False)
                levels = gr.Dataframe(label="Whole, part and subpart of the click", interactive=False)
            place = gr.State(None)
            asking = [
                picture.select(clicked, [picture, source], [figure, levels, place]),
                source.change(again, [picture, source, place], [figure, levels]),
            ]
            picture.change(lambda: (None, None, None), None, [figure, levels, place], cancels=asking)
        with gr.Tab("Score a mask"), gr.Row():
            with gr.Column(scale=2, min_width=320):
                drawing = gr.ImageEditor(
                    {"background": first, "layers": [], "composite": None},
                    label="Paint the mask",
                    format="png",
                    sources=["upload", "clipboard"],
                    transforms=(),
                    layers=False,
                    brush=gr.Brush(default_color="#56B4E9", colors=["#56B4E9"], color_mode="fixed"),
                )
                file = gr.File(label="… or its PNG, of the picture's size", file_types=[".png"])
                button = gr.Button("Score", variant="primary")
            with gr.Column(scale=3, min_width=480):
                compared = gr.Plot(show_label=False)
                scores = gr.Dataframe(label="Scores", interactive=False)
            button.click(scored, [drawing, file], [compared, scores])
    return page


def serve(
    desk: Desk,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    share: bool = False,
    open_browser: bool = True,
) -> Any:
    """Opens the page in a thread of its own.

    Args:
        desk: Does the work.
        host: Who may come: "127.0.0.1" this machine alone, "0.0.0.0" all that reach it.
        port: Of the server.
        share: Ask Gradio for a public address as well.
        open_browser: Open it here.

    Returns:
        The page; ``block_thread()`` waits, ``close()`` ends it.

    Raises:
        MissingExtraError: Gradio is not installed.
        InputError: The server can't be opened there.
    """
    gr = require_gradio()
    page = build_page(desk)
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=share,
            inbrowser=open_browser,
            prevent_thread_lock=True,
            quiet=True,
            ssr_mode=False,
            footer_links=[],
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        )
    except OSError as error:
        came = f"a page at port {port} of {host} ({error})"
        raise InputError(explain(came, "a port that is free and may be opened", "name another with --port")) from error
    return page


def _words(segmenter: Segmenter) -> str:
    about = Provenance(segmenter=segmenter.name, checkpoint_hash=segmenter.checkpoint_hash)
    words = f"## arrcoc_sam\nSegmenter: `{segmenter.name}`, weights `{segmenter.checkpoint_hash[:12]}`."
    if about.demonstration:
        words += (
            " **A demonstration model**, trained on generated scenes: on photographs its masks are often wrong. "
            "`arrcoc-sam app --segmenter sam_vit_b` opens the page with a real one."
        )
    return words


def _example_files() -> list[Path]:
    import skimage.data

    return [Path(skimage.data.__file__).parent / f"{name}.png" for name in _EXAMPLES]


def require_gradio() -> Any:
    """The module.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import gradio
    except ImportError as error:
        raise MissingExtraError.of("gradio", "app") from error
    return gradio
