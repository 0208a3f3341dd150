"""What is to be followed in a clip: clicks, a box or a mask of one object on one frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from arrcoc_sam.errors import InputError, ShapeError, describe, explain
from arrcoc_sam.inputs import Coordinates, as_coordinates, as_masks, as_numbers
from arrcoc_sam.prompts import Prompts
from arrcoc_sam.segmenters.model_prompts import check_inside
from arrcoc_sam.segmenters.video.frames import Clip, check_frame

__all__ = ["VideoPrompt", "check_video_prompts"]

_END = 2**63  # tables of tracks hold 64-bit integers


@dataclass(frozen=True, eq=False)
class VideoPrompt:
    """One object on one frame.

    Clicks and a box may come together; a mask comes alone, as SAM 2 has it: it is taken as it is, and no decoder is
    asked about that frame.

    Attributes:
        frame: The frame's index, from 0.
        object_id: Any whole number; prompts with the same one are about the same object.
        points_xy: (n, 2) pixel indices of the original frame, or None.
        labels: (n,) 1 foreground, 0 background; all foreground by default.
        box_xyxy: (4,), or None.
        mask: (H, W) bool at the frame's size, or None.

    Example:
        >>> VideoPrompt(0, points_xy=[[120, 80]]).kind
        'click'
    """

    frame: int
    object_id: int = 1
    points_xy: Coordinates | None = None
    labels: Any = None
    box_xyxy: Coordinates | None = None
    mask: Bool[Tensor, "H W"] | Bool[np.ndarray, "H W"] | None = None
    _prompts: Prompts | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check what can be checked without the clip.

        Raises:
            InputError: Nothing to go by, a mask beside something else, labels without points, a frame or an object that
                is no whole number, or values that :class:`~arrcoc_sam.prompts.Prompts` refuses.
        """
        asked = self.points_xy is not None or self.box_xyxy is not None
        if asked == (self.mask is not None):
            came = "a mask beside points or a box" if asked else "no points, no box and no mask"
            raise InputError(explain(f"a prompt of {came}", "points, a box, or both; or a mask alone"))
        for name in ("frame", "object_id"):  # kept as int: JSON and torch's files know no integers of numpy
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or not -_END <= number < _END:
                raise InputError(explain(f"{name}={number!r}", "a whole number of at most 64 bits"))
            object.__setattr__(self, name, int(number))
        if self.mask is not None:
            mask = as_masks(self.mask, name="mask")
            if mask.ndim != 2:
                raise ShapeError(explain(f"mask is {describe(mask)}", "(H, W)"))
            if self.labels is not None:
                raise InputError(explain("labels beside a mask", "labels of points", "leave them out"))
            object.__setattr__(self, "mask", mask)
            return
        prompts = Prompts(
            None if self.points_xy is None else as_coordinates(self.points_xy, 2, "points_xy").reshape(1, -1, 2),
            None if self.labels is None else as_numbers(self.labels, "labels", "(n,)").reshape(1, -1),
            None if self.box_xyxy is None else as_coordinates(self.box_xyxy, 4, "box_xyxy").reshape(1, 4),
        )
        object.__setattr__(self, "_prompts", prompts)

    @property
    def kind(self) -> str:
        """What it is made of: "click", "box", "click+box" or "mask"."""
        if self.mask is not None:
            return "mask"
        return "+".join(
            name for name, value in (("click", self.points_xy), ("box", self.box_xyxy)) if value is not None
        )

    @property
    def prompts(self) -> Prompts:
        """Points and box as an image segmenter takes them.

        Raises:
            InputError: A mask has none.
        """
        if self._prompts is None:
            raise InputError(explain("the points of a mask", "a prompt of points or a box"))
        return self._prompts

    def tokens(self, scale_xy: tuple[float, float]) -> tuple[Float[Tensor, "1 1 n 2"], Int[Tensor, "1 1 n"]]:
        """Points and labels in the model's frame, the corners of the box first and labelled 2 and 3, as SAM 2 does."""
        coordinates, labels = [], []
        if self.prompts.boxes_xyxy is not None:
            coordinates.append(self.prompts.boxes_xyxy.reshape(2, 2))
            labels.append(torch.tensor([2, 3]))
        if self.prompts.points_xy is not None and self.prompts.labels is not None:
            present = self.prompts.labels[0] >= 0
            coordinates.append(self.prompts.points_xy[0][present])
            labels.append(self.prompts.labels[0][present])
        scaled = torch.cat(coordinates) * torch.tensor(scale_xy, dtype=torch.float64)
        return scaled.float()[None, None], torch.cat(labels).int()[None, None]


def check_video_prompts(prompts: Sequence[VideoPrompt], clip: Clip) -> None:
    """See that prompts fit a clip.

    Raises:
        InputError: No prompt, a frame that is not there, a point or box outside, two prompts of one object on a frame,
            or other things than prompts.
        ShapeError: A mask of another size than the frames.
    """
    given: object = prompts
    if given is not None and not isinstance(given, Sequence):
        mend = "[prompt]" if isinstance(given, VideoPrompt) else None
        raise InputError(explain(f"prompts is {describe(given)}", "a list of VideoPrompt", mend))
    if not prompts:
        raise InputError(
            explain("no prompt", "at least one object to follow", "add a VideoPrompt with points_xy (--point x,y)")
        )
    seen: set[tuple[int, int]] = set()
    for number, prompt in enumerate(prompts):
        one: object = prompt
        if not isinstance(one, VideoPrompt):
            mend = "VideoPrompt(frame, points_xy=[[x, y]])"
            raise InputError(explain(f"prompts[{number}] is {describe(one)}", "a VideoPrompt", mend))
        check_frame(clip, prompt.frame, f"a prompt of object {prompt.object_id}")
        key = (prompt.object_id, prompt.frame)
        if key in seen:
            raise InputError(
                explain(
                    f"two prompts of object {prompt.object_id} on frame {prompt.frame}",
                    "one, which may have several points and a box",
                )
            )
        seen.add(key)
        if prompt.mask is not None:
            if tuple(prompt.mask.shape) != clip.size_hw:
                raise ShapeError(
                    explain(
                        f"the mask of object {prompt.object_id} is {describe(prompt.mask)}",
                        f"{clip.size_hw}, the size of the frames",
                    )
                )
        else:
            _check_inside(prompt, clip.size_hw)


def _check_inside(prompt: VideoPrompt, size_hw: tuple[int, int]) -> None:
    """See that points and box lie in the frame; an error names object and frame."""
    try:
        check_inside(prompt.prompts, [size_hw])
    except InputError as error:
        raise InputError(f"object {prompt.object_id} on frame {prompt.frame}: {error}") from error
