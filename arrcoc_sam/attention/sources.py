"""Attention sources by name, as the command line gives them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from arrcoc_sam.attention.families import family_of
from arrcoc_sam.attention.files import ARRAY_SUFFIXES, ArrayAttention
from arrcoc_sam.attention.maps import AttentionSource
from arrcoc_sam.attention.relevance import RelevanceAttention
from arrcoc_sam.attention.vit import ViTAttention
from arrcoc_sam.errors import UnknownNameError, explain

__all__ = ["load_attention"]


def load_attention(name: str, **options: Any) -> AttentionSource:
    """An attention source by name.

    Args:
        name: "relevance"; "timm:<model>" or "hf:<repository or folder>"; a ``.npy``, ``.npz``, ``.png`` or
            ``.safetensors`` file; or a folder with one such file for each image.
        **options: Arguments of RelevanceAttention, ViTAttention or ArrayAttention.

    Raises:
        UnknownNameError: None of these.

    Example:
        >>> type(load_attention("relevance", grid=16)).__name__
        'RelevanceAttention'
    """
    if name == "relevance":
        return RelevanceAttention(**options)
    if name.startswith(("timm:", "hf:")):
        return ViTAttention(name, **options)
    if Path(name).suffix.lower() in ARRAY_SUFFIXES or Path(name).is_dir():
        return ArrayAttention(name, **options)
    known = f"'relevance', 'timm:<model>', 'hf:<repository>', a folder or a file in {', '.join(ARRAY_SUFFIXES)}"
    raise UnknownNameError(explain(f"there is no attention source {name!r}", known, _meant(name)))


def _meant(name: str) -> str | None:
    """What somebody may have meant by a name that is no source: that of a transformer, without its library."""
    import timm  # no error but this one needs it

    model = name.partition(".")[0]
    if timm.is_model(model) and family_of("timm", timm.model_entrypoint(model).__module__.rpartition(".")[2]).supported:
        return f"'timm:{name}', if that is meant"
    repository = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) and not Path(name).parent.is_dir()
    return f"'hf:{name}', if that is meant" if repository and not Path(name).suffix else None
