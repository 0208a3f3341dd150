"""The families of SAM in transformers: which classes they are, and how images get into their frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from arrcoc_sam.errors import UnsupportedModelError, explain

__all__ = ["FAMILIES", "SamFamily", "family_of"]

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class SamFamily:
    """One family of models.

    Attributes:
        name: What people call it.
        model_types: ``model_type`` of the configurations that are of it. Repositories of SAM 2 and later describe the
            video model, whose image part is loaded for images.
        image_class: The class of transformers for images.
        video_class: The class for video, or None where video is not supported here.
        framing: "letterbox" keeps the aspect ratio and pads at the bottom or right; "squash" does neither.
        decoder: Which decoder it has; see :mod:`arrcoc_sam.segmenters.hf.decoders`.
        mean: Of the pixels in [0, 1], where the repository names none.
        std: Likewise.
        example: A published repository.
    """

    name: str
    model_types: tuple[str, ...]
    image_class: str
    video_class: str | None
    framing: Literal["letterbox", "squash"]
    decoder: Literal["sam", "hq", "sam2"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    example: str


FAMILIES = (
    SamFamily("SAM", ("sam",), "SamModel", None, "letterbox", "sam", *_IMAGENET, "facebook/sam-vit-base"),
    SamFamily(
        "SAM-HQ", ("sam_hq",), "SamHQModel", None, "letterbox", "hq", *_IMAGENET, "syscv-community/sam-hq-vit-base"
    ),
    SamFamily(
        "SAM 2",
        ("sam2", "sam2_video"),
        "Sam2Model",
        "Sam2VideoModel",
        "squash",
        "sam2",
        *_IMAGENET,
        "facebook/sam2.1-hiera-tiny",
    ),
    SamFamily(
        "EdgeTAM",
        ("edgetam", "edgetam_video"),
        "EdgeTamModel",
        "EdgeTamVideoModel",
        "squash",
        "sam2",
        *_IMAGENET,
        "yonigozlan/EdgeTAM-hf",
    ),
    SamFamily(
        "SAM 3 tracker",
        ("sam3_tracker", "sam3_tracker_video", "sam3_video"),
        "Sam3TrackerModel",
        None,
        "squash",
        "sam2",
        *_HALVES,
        "facebook/sam3",
    ),
)
"""Every family that ``load_segmenter("hf:…")`` loads."""


def family_of(model_type: str, *, model: str) -> SamFamily:
    """The family of a configuration's ``model_type``.

    Args:
        model_type: As ``config.json`` has it.
        model: What the model is called in the error message.

    Raises:
        UnsupportedModelError: It is no promptable SAM.

    Example:
        >>> family_of("sam2_video", model="hf:facebook/sam2.1-hiera-tiny").image_class
        'Sam2Model'
    """
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    names = ", ".join(f"{family.name} ({', '.join(family.model_types)})" for family in FAMILIES)
    raise UnsupportedModelError(
        explain(
            f"{model} is a model of type {model_type!r}, which is no promptable SAM",
            f"a model of one of the families {names}",
            "name a repository of one of them, such as hf:facebook/sam-vit-base",
        )
    )
