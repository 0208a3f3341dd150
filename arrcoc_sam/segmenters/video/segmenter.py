"""Following objects through a clip with SAM 2 or EdgeTAM, with the scores that transformers drops on the way.

Every object is followed forward from its first prompt and backward from it, with all its prompted frames in memory.
The predicted IoU, which video outputs do not carry, is caught at the mask decoder; a mask given as prompt bypasses the
decoder, and has no score here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from arrcoc_sam.errors import InputError, UnsupportedModelError, describe, explain
from arrcoc_sam.inputs import choose_device
from arrcoc_sam.segmenters.hf.families import SamFamily
from arrcoc_sam.segmenters.hf.loading import PREFIX, load_hf_model
from arrcoc_sam.segmenters.hf.segmenter import HuggingFaceSegmenter
from arrcoc_sam.segmenters.video.frames import Clip, open_clip
from arrcoc_sam.segmenters.video.prompts import VideoPrompt, check_video_prompts
from arrcoc_sam.segmenters.video.resume import TrackingCheckpoints
from arrcoc_sam.segmenters.video.tracking import Progress, Tracking
from arrcoc_sam.segmenters.video.tracks import ObjectFrame, VideoTracks

__all__ = ["VideoSegmenter", "load_video_segmenter"]


class VideoSegmenter:
    """A model that follows objects.

    Attributes:
        model: ``Sam2VideoModel`` or ``EdgeTamVideoModel`` of transformers.
        segmenter: The same weights as a segmenter of images.
        name: What it was loaded as.
    """

    def __init__(
        self,
        model: nn.Module,
        family: SamFamily,
        *,
        name: str,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        """Wrap a model; :func:`load_video_segmenter` makes one by name.

        Args:
            model: The model.
            family: Its family.
            name: What to call it in messages.
            device: "auto", a device, or None for where the model lies.
            dtype: ``torch.bfloat16`` or ``torch.float16`` runs it under autocast.
            mean: Of the pixels in [0, 1]; the family's by default.
            std: Likewise.

        Raises:
            UnsupportedModelError: The family does not track here.
            InputError: A device that is not there, or another dtype.
        """
        if family.video_class != type(model).__name__:
            raise UnsupportedModelError(
                explain(f"{name} is a {type(model).__name__}", f"a {family.video_class or 'model that tracks'}")
            )
        self.segmenter = HuggingFaceSegmenter(model, family, name=name, device=device, dtype=dtype, mean=mean, std=std)
        self.name = name
        self.model: Any = self.segmenter.model

    def __repr__(self) -> str:
        return f"VideoSegmenter({self.name!r}, {self.segmenter.image_size} px, {self.device})"

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.segmenter.device

    @property
    def checkpoint_hash(self) -> str:
        """SHA-256 over the weights; see :class:`~arrcoc_sam.segmenters.base.Segmenter`."""
        return self.segmenter.checkpoint_hash

    def track(
        self,
        clip: str | Path | Clip,
        prompts: Sequence[VideoPrompt],
        *,
        progress: Progress | None = None,
        checkpoints: TrackingCheckpoints | None = None,
    ) -> VideoTracks:
        """Follow objects through a clip, both ways from their prompts.

        Args:
            clip: A folder of images, a video file, or a :class:`~arrcoc_sam.segmenters.video.frames.Clip`.
            prompts: What to follow; several objects, several frames of an object.
            progress: Told how far it is.
            checkpoints: Where the state of a long run is kept, so that it goes on where it broke off.

        Returns:
            The rows of all objects.

        Raises:
            InputError: No prompt, or one that does not fit the clip; something else in place of clip or prompts.
            DataError: A clip without frames, with frames of several sizes, or damaged; or a state of another run.
            ImageReadError: Nothing that can be read.
        """
        frames = open_clip(clip)
        try:
            found = self.iter_track(frames, prompts, progress=progress, checkpoints=checkpoints)
            rows = sorted(found, key=lambda row: (row.object_id, row.frame))
        finally:
            if frames is not clip:  # opened here
                frames.close()
        return VideoTracks(
            rows=tuple(rows),
            size_hw=frames.size_hw,
            num_frames=len(frames),
            frame_rate=frames.frame_rate,
            metadata={"model": self.name, "checkpoint_hash": self.checkpoint_hash, "clip": frames.name},
        )

    def iter_track(
        self,
        clip: str | Path | Clip,
        prompts: Sequence[VideoPrompt],
        *,
        progress: Progress | None = None,
        checkpoints: TrackingCheckpoints | None = None,
    ) -> Iterator[ObjectFrame]:
        """Like :meth:`track`, but each row as it is found: prompted frames first, then forward, then backward."""
        frames = open_clip(clip)
        check_video_prompts(prompts, frames)
        return Tracking(self.segmenter, frames, prompts, progress or _silent).run(checkpoints)


def load_video_segmenter(
    name: str, *, device: torch.device | str = "auto", dtype: torch.dtype | None = None
) -> VideoSegmenter:
    """A model that follows objects, by name.

    Args:
        name: "hf:<repository or folder>" of SAM 2 or EdgeTAM, such as "hf:facebook/sam2.1-hiera-tiny".
        device: "auto" takes a GPU where there is one.
        dtype: ``torch.bfloat16`` or ``torch.float16`` for autocast.

    Raises:
        UnsupportedModelError: A model that does not track.
        CheckpointError: No such repository or folder, no configuration or weights in it.
        MissingExtraError: transformers is not installed.
        InputError: A path or a model in place of the name, a device that is not there, or another dtype.
    """
    given: object = name
    if not isinstance(given, str):
        mend = f"{PREFIX}<folder> as text for a model of your own"
        raise InputError(explain(f"name is {describe(given)}", f"a name, {PREFIX}<repository or folder>", mend))
    if not name.startswith(PREFIX):
        raise UnsupportedModelError(
            explain(f"{name!r} does not track", f"a video model, such as {PREFIX}facebook/sam2.1-hiera-tiny")
        )
    target = choose_device(device)
    loaded = load_hf_model(name, kind="video")
    return VideoSegmenter(
        loaded.model, loaded.family, name=name, device=target, dtype=dtype, mean=loaded.mean, std=loaded.std
    )


def _silent(stage: str, done: int, total: int) -> None:
    del stage, done, total
