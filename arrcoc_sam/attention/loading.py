"""Vision transformers by name, with one clear error for each way in which that can fail."""

from __future__ import annotations

import difflib
import os
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from huggingface_hub import constants
from torch import nn

from arrcoc_sam.attention.families import require_supported
from arrcoc_sam.errors import CheckpointError, InputError, MissingExtraError, UnknownNameError, explain, said
from arrcoc_sam.inputs import choose_device

__all__ = [
    "cache_only_if_unreachable",
    "load_vision_transformer",
    "quiet_transformers",
    "refuse_missing",
    "transformers_source",
]


def load_vision_transformer(
    name: str,
    *,
    pretrained: bool,
    image_size: tuple[int, int] | None = None,
    any_size: bool = False,
    device: torch.device | str = "auto",
    options: dict[str, Any] | None = None,
) -> tuple[nn.Module, Any]:
    """A model by its "timm:" or "hf:" name, in evaluation mode, and its image processor ("hf:" only, else None).

    The family is checked before anything is built or fetched.

    Args:
        name: "timm:<model>" or "hf:<repository or folder>".
        pretrained: Whether to load the published weights.
        image_size: Build a timm model for this height and width.
        any_size: Build a timm model that takes any multiple of its patch.
        device: "auto" (CUDA if there is one), or a device.
        options: Further arguments of ``timm.create_model`` or ``from_pretrained``.

    Raises:
        UnknownNameError: No such model or prefix.
        UnsupportedModelError: A family that is refused.
        CheckpointError: Weights or configuration can't be had, or not all that the maps are made of.
        MissingExtraError: An "hf:" name without transformers.
        InputError: The model does not take the options, or there is no such device here.
    """
    library, _, rest = name.partition(":")
    if library not in ("timm", "hf") or not rest:
        raise UnknownNameError(
            explain(f"the model is called {name!r}", "'timm:<model>', 'hf:<repository>' or a module")
        )
    target = choose_device(device)  # before weights are fetched
    load, from_hub = _load_timm, pretrained
    if library == "hf":
        load, (rest, local) = _load_transformers, transformers_source(name)
        from_hub = not local
    with cache_only_if_unreachable() if from_hub else nullcontext():
        model, processor = load(rest, pretrained, image_size, any_size, options or {})
    return model.eval().to(target), processor


def _load_timm(
    name: str, pretrained: bool, image_size: tuple[int, int] | None, any_size: bool, options: dict[str, Any]
) -> tuple[nn.Module, None]:
    import timm

    if ":" not in name:  # timm's own "hf-hub:…" and "local-dir:…" sources are checked once they are built
        architecture = name.partition(".")[0]
        if not timm.is_model(architecture):
            near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
            raise UnknownNameError(
                explain(f"timm has no model {name!r}", f"such as {', '.join(near)}" if near else None)
            )
        # Not the entry point's own module: that of a deprecated name is the registry's.
        family = next(file for file in timm.list_modules() if timm.models.is_model_in_modules(architecture, [file]))
        require_supported("timm", family, model=f"timm:{name}")
    if image_size is not None and not any_size:
        options = {"img_size": image_size, **options}
    if any_size:
        options = {"dynamic_img_size": True, **options}
    try:
        return timm.create_model(name, pretrained=pretrained, **options), None
    except (TypeError, AssertionError) as error:
        raise InputError(
            explain(f"timm:{name} can't be built with {options} ({error})", "options that this model takes")
        ) from error
    except Exception as error:
        if not pretrained and ":" not in name:  # nothing was to be fetched
            raise InputError(
                explain(f"timm:{name} can't be built with {options} ({said(error)})", "options that this model takes")
            ) from error
        # Hub, HTTP and file errors have no common base; whatever it was, there are no weights.
        raise _no_weights(f"timm:{name}", error) from error


def _load_transformers(
    name: str, pretrained: bool, image_size: tuple[int, int] | None, any_size: bool, options: dict[str, Any]
) -> tuple[nn.Module, Any]:
    del image_size, any_size  # these models interpolate their positions when they run
    try:
        from transformers import AutoConfig, AutoImageProcessor, AutoModel
    except ImportError as error:
        raise MissingExtraError.of("transformers", "hf") from error

    with quiet_transformers():
        try:
            config = AutoConfig.from_pretrained(name)
        except Exception as error:
            raise _no_weights(f"hf:{name}", error, what="the configuration") from error
        require_supported("transformers", config.model_type, model=f"hf:{name}")
        try:
            processor = AutoImageProcessor.from_pretrained(name)  # type: ignore[no-untyped-call]
            if pretrained:
                # Safetensors only: a pickle would be run.
                model, report = AutoModel.from_pretrained(
                    name, use_safetensors=True, output_loading_info=True, **options
                )
        except Exception as error:
            raise _no_weights(f"hf:{name}", error) from error
        if pretrained:
            # Published classifiers lack what is beside the blocks' way: ViT's pooler, CLIP's text model.
            tower = "vision_model." if hasattr(model, "vision_model") else ""
            on_the_way = (
                key for key in report["missing_keys"] if key.startswith(tower) and not key.startswith("pooler.")
            )
            refuse_missing(f"hf:{name}", type(model).__name__, on_the_way)
            return model, processor
        return AutoModel.from_config(config, **options), processor  # type: ignore[no-untyped-call]


def transformers_source(name: str) -> tuple[str, bool]:
    """What transformers calls a model.

    Args:
        name: "hf:<repository or folder>".

    Returns:
        The repository or folder, and whether it is a folder.

    Raises:
        CheckpointError: A folder that there is not, or without a model in it.
    """
    where = name.removeprefix("hf:")
    folder = Path(where).expanduser()
    local = bool(where) and folder.is_dir()
    if local and not (folder / "config.json").is_file():
        raise CheckpointError(
            explain(
                f"the folder {folder} has no config.json",
                "a model as save_pretrained writes it: config.json and model.safetensors",
                "name the folder of one snapshot, not the one above it",
            )
        )
    if not local and (not where or _looks_like_a_path(where)):
        raise CheckpointError(
            explain(f"{name!r}: there is no folder {where!r}", "hf:<owner>/<repository>, or hf:<folder>")
        )
    return str(folder) if local else where, local


def _looks_like_a_path(where: str) -> bool:
    return where.startswith((".", "/", "~", "\\")) or where.count("/") > 1 or "\\" in where


def refuse_missing(name: str, class_name: str, missing: Iterable[str]) -> None:
    """See that weights lack nothing: transformers fills up with random numbers.

    Raises:
        CheckpointError: They lack some.
    """
    keys = sorted(missing)
    if keys:
        raise CheckpointError(
            explain(
                f"the weights of {name} lack {len(keys)} tensors of {class_name}, {keys[0]} for one, which would be "
                "random",
                "all of them",
                "fetch the repository anew, or use another conversion of this checkpoint",
            )
        )


@contextmanager
def cache_only_if_unreachable() -> Iterator[None]:
    """Where the hub can't be reached at all, go straight to the cache: the hub's client would retry for a minute."""
    if constants.HF_HUB_OFFLINE or _hub_is_reachable():
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """The library transformers without its warnings, and without its progress bars where stderr is no terminal.

    It warns when a part of a model is loaded (the image part of a video model, say), which is what is wanted here.
    """
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging  # untyped

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _hub_is_reachable(seconds: float = 5.0) -> bool:
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # the proxy knows; we can't tell from here
    address = urlsplit(constants.ENDPOINT)
    try:
        with socket.create_connection((address.hostname or "", address.port or 443), timeout=seconds):
            return True
    except OSError:
        return False


def _no_weights(label: str, error: Exception, *, what: str = "the weights") -> CheckpointError:
    return CheckpointError(
        explain(
            f"{what} of {label} can't be had ({said(error)})",
            "a network, a cached copy or a local folder",
            "fetch it once on a connected machine, or use pretrained=False (--random-weights), as a control only"
            if label.startswith("timm:")
            else "fetch it once on a connected machine, or give a local folder: hf:/path/to/model",
        )
    )
