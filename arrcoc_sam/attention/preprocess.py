"""A model's own preprocessing, together with the ImageTransform that says what it does to the image's geometry."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from arrcoc_sam.attention.layouts import TokenLayout
from arrcoc_sam.errors import InputError, UnsupportedModelError, explain
from arrcoc_sam.geometry import ImageTransform

__all__ = ["Framing", "Preprocess", "timm_preprocess", "transformers_preprocess"]

Preprocess: TypeAlias = Callable[[UInt8[np.ndarray, "H W 3"]], tuple[Float[Tensor, "1 3 a b"], ImageTransform]]
"""From an RGB image to a model's input and the transform from the image to it."""

Framing: TypeAlias = Literal["model", "squash", "aspect"]
"""How an image becomes an input: "model", as the model was published (often a centre crop, which cuts off the borders
and the masks there); "squash", the whole image stretched to the input size; "aspect", the whole image at its own aspect
ratio, each side a multiple of the patch, the shorter one about the input size (for models that take any size)."""


def timm_preprocess(
    model: Any, layout: TokenLayout, *, framing: Framing = "model", image_size: tuple[int, int] | None = None
) -> Preprocess:
    """The evaluation transform of a timm model (its ``pretrained_cfg``: size, crop, interpolation, mean, deviation).

    Args:
        model: The model.
        layout: Its tokens.
        framing: How images become inputs; see :data:`Framing`.
        image_size: Input height and width; the model's own when None.

    Raises:
        InputError: A size or framing that the model does not take.
    """
    from timm.data.config import resolve_model_data_config
    from timm.data.transforms_factory import create_transform

    config = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    size_hw = _input_size(layout, image_size, default=tuple(config["input_size"][-2:]), framing=framing)

    def preprocess(pixels: UInt8[np.ndarray, "H W 3"]) -> tuple[Tensor, ImageTransform]:
        image_hw = (pixels.shape[0], pixels.shape[1])
        frame_hw = aspect_size(image_hw, size_hw, layout.patch_hw) if framing == "aspect" else size_hw
        mode, share = (config["crop_mode"], config["crop_pct"]) if framing == "model" else ("squash", 1.0)
        apply = create_transform(
            input_size=(3, *frame_hw),
            interpolation=config["interpolation"],
            mean=config["mean"],
            std=config["std"],
            crop_pct=share,
            crop_mode=mode,
            is_training=False,
        )
        transform = timm_geometry(image_hw, frame_hw, crop_mode=mode, crop_share=share)
        return _checked(apply(Image.fromarray(pixels))[None], transform, layout.label), transform

    return preprocess


def timm_geometry(
    image_hw: tuple[int, int], frame_hw: tuple[int, int], *, crop_mode: str, crop_share: float
) -> ImageTransform:
    """What timm's evaluation transform does to the geometry: resize to size / ``crop_share``, then cut the centre out.

    Args:
        image_hw: Height and width of the image.
        frame_hw: Height and width of the model's input.
        crop_mode: "center" (shorter side fitted), "squash" (both sides fitted) or "border" (longer side fitted, the
            rest padded).
        crop_share: The share of the resized side that the crop keeps.

    Reference:
        ``timm.data.transforms_factory.transforms_imagenet_eval``.
    """
    scaled = tuple(math.floor(side / crop_share) for side in frame_hw)
    if crop_mode == "squash":
        resized: int | tuple[int, int] = (scaled[0], scaled[1])
    elif crop_mode != "border" and scaled[0] == scaled[1]:
        resized = scaled[0]
    else:
        ratios = [side / target for side, target in zip(image_hw, scaled, strict=True)]
        ratio = max(ratios) if crop_mode == "border" else min(ratios)
        resized = (max(1, round(image_hw[0] / ratio)), max(1, round(image_hw[1] / ratio)))
    return ImageTransform.resize_center_crop(image_hw, resized, frame_hw, rounding="round")


_PLAIN_PROCESSORS = frozenset(
    f"{kind}ImageProcessor{backend}"
    for kind in ("ViT", "DeiT", "CLIP", "Bit", "Siglip", "DINOv3ViT")
    for backend in ("", "Fast", "Pil")
)


def transformers_preprocess(
    processor: Any, layout: TokenLayout, *, framing: Framing = "model", image_size: tuple[int, int] | None = None
) -> Preprocess:
    """A transformers image processor.

    Args:
        processor: One of the plain ones (resize, centre crop, rescale, normalise): ViT, DeiT, CLIP, Bit, SigLIP or
            DINOv3.
        layout: The model's tokens.
        framing: How images become inputs; see :data:`Framing`.
        image_size: Input height and width; the processor's own when None.

    Raises:
        UnsupportedModelError: A processor whose geometry is not known here.
        InputError: A size or framing that can't be.
    """
    kind = type(processor).__name__
    if kind not in _PLAIN_PROCESSORS or bool(getattr(processor, "do_pad", False)):
        came = f"{layout.label} comes with a {kind}" + (" that pads" if kind in _PLAIN_PROCESSORS else "")
        mend = "hand over preprocess=, a function from the image to (pixels, ImageTransform)"
        raise UnsupportedModelError(explain(came, f"one of {', '.join(sorted(_PLAIN_PROCESSORS))}, unpadded", mend))
    resizes = bool(processor.do_resize)
    crops = bool(getattr(processor, "do_center_crop", False))
    size = _sizes(processor.size) if resizes else {}
    crop = _sizes(processor.crop_size) if crops else {}
    if framing != "model" or image_size is not None:
        own = crop if crops else size
        default = (own["height"], own["width"]) if "height" in own else layout.input_hw
        if default is None:
            raise InputError(explain(f"{layout.label} names no input size", "image_size=(height, width)"))
        input_hw = _input_size(layout, image_size, default=default, framing=framing)
        if framing == "model" and crops and "shortest_edge" in size:
            # The same share of the shorter side is cut off at any size.
            size = {"shortest_edge": round(size["shortest_edge"] * min(input_hw) / min(default))}
            crop = {"height": input_hw[0], "width": input_hw[1]}
        else:
            size, crop, crops, resizes = {"height": input_hw[0], "width": input_hw[1]}, {}, False, True

    def preprocess(pixels: UInt8[np.ndarray, "H W 3"]) -> tuple[Tensor, ImageTransform]:
        image_hw = (pixels.shape[0], pixels.shape[1])
        wanted = size
        if framing == "aspect":
            frame = aspect_size(image_hw, (size["height"], size["width"]), layout.patch_hw)
            wanted = {"height": frame[0], "width": frame[1]}
        options: dict[str, Any] = {"do_resize": resizes, "do_center_crop": crops}
        options |= {"size": wanted} if resizes else {}
        options |= {"crop_size": crop} if crops else {}
        prepared = processor(images=Image.fromarray(pixels), return_tensors="pt", **options)["pixel_values"]
        transform = ImageTransform.squash(image_hw, _resized_hw(image_hw, wanted) if resizes else image_hw)
        if crops:
            # The numpy code rounds half a padded pixel up, torchvision's down.
            up = not hasattr(processor, "backend") or processor.backend != "torchvision"
            transform = transform.then(_center_crop(transform.frame_hw, (crop["height"], crop["width"]), pad_up=up))
        return _checked(prepared, transform, layout.label), transform

    return preprocess


def aspect_size(image_hw: tuple[int, int], size_hw: tuple[int, int], patch_hw: tuple[int, int]) -> tuple[int, int]:
    """The multiple of the patch nearest to the image's aspect ratio, its shorter side about that of ``size_hw``.

    Example:
        >>> aspect_size((480, 640), (224, 224), (16, 16))
        (224, 304)
    """
    scale = min(size_hw) / min(image_hw)
    height, width = (max(1, round(s * scale / p)) * p for s, p in zip(image_hw, patch_hw, strict=True))
    return height, width


def _resized_hw(image_hw: tuple[int, int], size: dict[str, int]) -> tuple[int, int]:
    if set(size) == {"height", "width"}:
        return size["height"], size["width"]
    if set(size) != {"shortest_edge"}:
        raise UnsupportedModelError(explain(f"the processor resizes to {size}", "height and width, or shortest_edge"))
    short, long = min(image_hw), max(image_hw)
    other = int(size["shortest_edge"] * long / short)
    return (size["shortest_edge"], other) if image_hw[0] <= image_hw[1] else (other, size["shortest_edge"])


def _center_crop(image_hw: tuple[int, int], crop_hw: tuple[int, int], *, pad_up: bool) -> ImageTransform:
    """The centre crop of transformers, which pads where the crop is the larger."""
    offsets = []
    for side, crop in zip(image_hw, crop_hw, strict=True):
        missing = crop - side
        offsets.append(float((missing + pad_up) // 2) if missing > 0 else -float((side - crop) // 2))
    return ImageTransform(image_hw, crop_hw, (1.0, 1.0), (offsets[1], offsets[0]))


def _sizes(size: Any) -> dict[str, int]:
    """A processor's size (a plain dictionary, or an object like one) without its empty entries."""
    return {key: int(value) for key, value in dict(size).items() if value is not None}


def _input_size(
    layout: TokenLayout, asked: tuple[int, int] | None, *, default: tuple[int, ...], framing: Framing
) -> tuple[int, int]:
    built = layout.input_hw
    size = asked or (built if built is not None and not layout.any_size else (default[0], default[1]))
    if framing not in ("model", "squash", "aspect"):
        raise InputError(explain(f"framing is {framing!r}", "'model', 'squash' or 'aspect'"))
    if not layout.any_size and (framing == "aspect" or size != built):
        came = f"{layout.label} takes inputs of {built} only and " + (
            "framing is 'aspect'" if framing == "aspect" else f"image_size is {size}"
        )
        mend = "give a model's name rather than a module, so that it is built for that size; or framing='squash'"
        raise InputError(explain(came, "that size", mend))
    if any(side < patch for side, patch in zip(size, layout.patch_hw, strict=True)):
        raise InputError(explain(f"image_size is {size}", f"at least one patch of {layout.patch_hw} pixels"))
    return size


def _checked(pixels: Tensor, transform: ImageTransform, label: str) -> Tensor:
    if tuple(pixels.shape) != (1, 3, *transform.frame_hw):
        raise UnsupportedModelError(
            explain(
                f"the preprocessing of {label} gave pixels of shape {tuple(pixels.shape)}",
                f"(1, 3, {transform.frame_hw[0]}, {transform.frame_hw[1]}), as its settings say",
                "hand over preprocess=, a function from the image to (pixels, ImageTransform)",
            )
        )
    return pixels.to(torch.float32)
