"""``arrcoc-sam app``: the web page."""

from __future__ import annotations

from typing import Annotated

import typer

from arrcoc_sam.cli.options import CheckpointOption, DeviceOption, SegmenterOption

__all__ = ["app"]


def app(
    segmenter: SegmenterOption = "tiny",
    checkpoint: CheckpointOption = None,
    device: DeviceOption = "auto",
    attention: Annotated[
        list[str],
        typer.Option("--attention", "-a", help="Sources on offer: relevance, timm:MODEL, hf:MODEL; repeatable."),
    ] = ["relevance"],  # noqa: B006 (Typer reads it, nothing writes it)
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Transformers without their weights: a control.")
    ] = False,
    host: Annotated[
        str, typer.Option(help="Address of the server. 127.0.0.1: this machine alone; 0.0.0.0: all that reach it.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port of the server.")] = 7860,
    share: Annotated[bool, typer.Option("--share", help="Ask Gradio for a public address as well.")] = False,
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = True,
) -> None:
    """A page to click on pictures and to paint masks: levels, attention, scores. Ctrl-C ends it.

    Needs the extra: pip install 'arrcoc-sam[app]'.
    """
    from arrcoc_sam.app import Desk, require_gradio, serve
    from arrcoc_sam.cli.console import out
    from arrcoc_sam.cli.options import check_segmenter, open_segmenter

    require_gradio()
    check_segmenter(segmenter)
    desk = Desk(
        open_segmenter(segmenter, checkpoint, device),
        attention=attention,
        only_these=share or host not in ("127.0.0.1", "localhost", "::1"),  # who comes from elsewhere loads no models
        random_weights=random_weights,
    )
    page = serve(desk, host=host, port=port, share=share, open_browser=open_browser)
    out().print(f"The page: {page.share_url or page.local_url}", soft_wrap=True, markup=False)
    try:
        page.block_thread()
    finally:
        page.close()
