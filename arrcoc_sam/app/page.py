"""The page itself: its two tabs, and the server that opens it; :class:`~arrcoc_sam.app.desk.Desk` does the work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from arrcoc_sam.app.desk import LEVEL_COLUMNS, SCORE_COLUMNS, Desk
from arrcoc_sam.datasets.folder import read_mask_file
from arrcoc_sam.errors import ArrcocSamError, InputError, MissingExtraError, explain
from arrcoc_sam.images import load_image
from arrcoc_sam.report.provenance import Provenance
from arrcoc_sam.segmenters.base import Segmenter

__all__ = ["build_page", "painted", "require_gradio", "serve"]

_EXAMPLES = ("astronaut", "chelsea", "coffee", "camera")


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
    examples = [str(path) for path in _example_files()]
    with gr.Blocks(title="arrcoc_sam", analytics_enabled=False, fill_width=True) as page:
        gr.Markdown(_words(desk.segmenter))
        with gr.Tab("Levels and attention"), gr.Row():
            _levels_tab(gr, desk, examples)
        with gr.Tab("Score a mask"), gr.Row():
            _score_tab(gr, desk, examples[0])
    return page


def _told(gr: Any, work: Callable[..., Any]) -> Callable[..., Any]:
    """The same work, whose errors are told on the page."""

    @wraps(work)
    def answer(*given: Any) -> Any:
        try:
            return work(*given)
        except ArrcocSamError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return answer


def _levels_tab(gr: Any, desk: Desk, examples: Sequence[str]) -> None:
    """A picture to click on, beside it the levels of the click and attention over them."""

    def asked(image: np.ndarray | None, source: str | None, place: Sequence[float]) -> tuple[Any, ...]:
        if image is None:
            raise InputError(explain("no picture", "one to click on", "drop one on the page, or take an example"))
        return desk.levels(image, place, (source or "").strip())

    def clicked(image: np.ndarray | None, source: str | None, event: Any) -> tuple[Any, ...]:
        place = tuple(event.index)
        return (*asked(image, source, place), place)

    clicked.__annotations__["event"] = gr.SelectData  # Gradio looks for it there

    def again(image: np.ndarray | None, source: str | None, place: Sequence[float] | None) -> tuple[Any, ...]:
        return (None, None) if place is None else asked(image, source, place)

    with gr.Column(scale=2, min_width=320):
        picture = gr.Image(examples[0], label="Click on an object", sources=["upload", "clipboard"], format="png")
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
        levels = gr.Dataframe(
            headers=list(LEVEL_COLUMNS), label="Whole, part and subpart of the click", interactive=False
        )
    place = gr.State(None)
    asking = [
        picture.select(_told(gr, clicked), [picture, source], [figure, levels, place]),
        source.change(_told(gr, again), [picture, source, place], [figure, levels]),
    ]
    picture.change(lambda: (None, None, None), None, [figure, levels, place], cancels=asking)


def _score_tab(gr: Any, desk: Desk, first: str) -> None:
    """A picture to paint a mask on, beside it the mask's scores."""

    def scored(drawing: dict[str, Any] | None, file: str | None) -> tuple[Any, ...]:
        image, mask = painted(drawing)
        if file is not None and mask.any():
            raise InputError(explain("a painting and a file", "one of them", "clear the other"))
        return desk.score(image, mask if file is None else read_mask_file(Path(file)).numpy())

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
        scores = gr.Dataframe(headers=list(SCORE_COLUMNS), label="Scores", interactive=False)
    button.click(_told(gr, scored), [drawing, file], [compared, scores])


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
        raise InputError(
            explain(came, "a port that is free and may be opened", "name another port (--port)")
        ) from error
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
