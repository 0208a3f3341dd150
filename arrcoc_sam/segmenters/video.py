"""Following objects through a clip with SAM 2 or EdgeTAM, with the scores that transformers drops on the way.

Every object is followed forward from its first prompt and backward from it, with all its prompted frames in memory.
The predicted IoU, which video outputs do not carry, is caught at the mask decoder; a mask given as prompt bypasses the
decoder, and has no score here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from arrcoc_sam.candidates import upscale
from arrcoc_sam.errors import UnsupportedModelError, explain
from arrcoc_sam.geometry import ImageTransform
from arrcoc_sam.hierarchy.levels import LEVELS
from arrcoc_sam.masks.rle import encode_rle
from arrcoc_sam.prompts import Prompts
from arrcoc_sam.segmenters.base import choose_device
from arrcoc_sam.segmenters.hf import HuggingFaceSegmenter
from arrcoc_sam.segmenters.hf_families import Family
from arrcoc_sam.segmenters.hf_loading import PREFIX, load_hf_model
from arrcoc_sam.segmenters.video_frames import Clip, open_clip
from arrcoc_sam.segmenters.video_memory import LazyFrames, forget, objects_of
from arrcoc_sam.segmenters.video_prompts import VideoPrompt, check_video_prompts
from arrcoc_sam.segmenters.video_tracks import ObjectFrame, VideoTracks, level_by_area

__all__ = ["VideoSegmenter", "load_video_segmenter"]

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""


class _Found(NamedTuple):
    """An object on a frame as the model answers it."""

    logits: Float[Tensor, "h w"]
    object_score: float
    predicted_iou: float


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
        family: Family,
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
        self, clip: str | Path | Clip, prompts: Sequence[VideoPrompt], *, progress: Progress | None = None
    ) -> VideoTracks:
        """Follow objects through a clip, both ways from their prompts.

        Args:
            clip: A folder of images, a video file, or a :class:`~arrcoc_sam.segmenters.video_frames.Clip`.
            prompts: What to follow; several objects, several frames of an object.
            progress: Told how far it is.

        Returns:
            The rows of all objects.

        Raises:
            InputError: No prompt, or one that does not fit the clip.
            DataError: A clip without frames, with frames of several sizes, or damaged.
            ImageReadError: Nothing that can be read.
        """
        frames = open_clip(clip)
        rows = sorted(self.iter_track(frames, prompts, progress=progress), key=lambda row: (row.object_id, row.frame))
        return VideoTracks(
            rows=tuple(rows),
            size_hw=frames.size_hw,
            num_frames=len(frames),
            frame_rate=frames.frame_rate,
            metadata={"model": self.name, "checkpoint_hash": self.checkpoint_hash, "clip": frames.name},
        )

    def iter_track(
        self, clip: str | Path | Clip, prompts: Sequence[VideoPrompt], *, progress: Progress | None = None
    ) -> Iterator[ObjectFrame]:
        """Like :meth:`track`, but each row as it is found: prompted frames first, then forward, then backward."""
        frames = open_clip(clip)
        check_video_prompts(prompts, frames)
        return _Tracking(self, frames, prompts, progress or _silent).run()


class _Tracking:
    """One clip and its prompts on their way through the model."""

    def __init__(
        self, segmenter: VideoSegmenter, clip: Clip, prompts: Sequence[VideoPrompt], progress: Progress
    ) -> None:
        self._segmenter, self._clip, self._progress = segmenter, clip, progress
        self._image: HuggingFaceSegmenter = segmenter.segmenter
        self._model = segmenter.model
        self._transform: ImageTransform = self._image.transform_for(clip.size_hw)
        self._prompts = {(prompt.object_id, prompt.frame): prompt for prompt in prompts}
        self._first: dict[int, int] = {}
        for prompt in prompts:
            self._first[prompt.object_id] = min(prompt.frame, self._first.get(prompt.object_id, prompt.frame))
        self._levels: dict[int, list[tuple[str, int]]] = {}
        self._first_area: dict[int, int] = {}
        self._caught: list[Tensor] = []
        self._session = self._new_session()

    def run(self) -> Iterator[ObjectFrame]:
        """All rows."""
        prompted = sorted({frame for _, frame in self._prompts})
        start, end = min(self._first.values()), max(self._first.values())
        for done, frame in enumerate(prompted):
            yield from self._prompted(frame)
            self._progress("prompts", done + 1, len(prompted))
        total = len(self._clip) - start
        for done, frame in enumerate(range(start, len(self._clip))):
            objects = [o for o in self._first if self._first[o] < frame and (o, frame) not in self._prompts]
            yield from self._followed(frame, objects, reverse=False)
            self._progress("forward", done + 1, total)
        for done, frame in enumerate(range(end - 1, -1, -1)):
            objects = [o for o in self._first if self._first[o] > frame]
            yield from self._followed(frame, objects, reverse=True)
            self._progress("backward", done + 1, end)

    def _prompted(self, frame: int) -> Iterator[ObjectFrame]:
        """The objects that have a prompt on a frame."""
        here = {name: self._prompts[name, frame] for name in self._first if (name, frame) in self._prompts}
        for name, prompt in here.items():
            index = self._session.obj_id_to_idx(name)
            if prompt.mask is not None:
                self._session.add_mask_inputs(index, frame, self._squashed(prompt.mask))
            else:
                points, labels = prompt.tokens(self._transform.scale_xy)
                self._session.add_point_inputs(index, frame, {"point_coords": points, "point_labels": labels})
        found: dict[int, _Found] = {}
        # Apart, since EdgeTAM can't join scores of the two.
        for by_mask in (False, True):
            some = [name for name, prompt in here.items() if (prompt.mask is not None) == by_mask]
            if some:
                found |= self._step(frame, some, reverse=False, new=True)
        for name, prompt in here.items():
            if self._first[name] == frame:
                self._levels[name] = self._levels_of(prompt)
            yield self._row(name, frame, found[name], prompt)

    def _followed(self, frame: int, objects: Sequence[int], *, reverse: bool) -> Iterator[ObjectFrame]:
        if not objects:
            return
        found = self._step(frame, objects, reverse=reverse, new=False)
        for name in objects:
            yield self._row(name, frame, found[name], None)

    def _step(self, frame: int, objects: Sequence[int], *, reverse: bool, new: bool) -> dict[int, _Found]:
        """Run the model on a frame for some objects."""
        part = objects_of(self._session, [self._session.obj_id_to_idx(name) for name in objects], new=new)
        with torch.inference_mode(), self._image._reduced()(), self._catching():
            out = self._model(inference_session=part, frame_idx=frame, reverse=reverse)
        if len(self._caught) != len(objects):
            came = f"{len(self._caught)} answers of the mask decoder for {len(objects)} objects"
            raise UnsupportedModelError(
                explain(came, "one each; this release of transformers works in another way", "install another release")
            )
        config = self._model.config
        forget(
            self._session,
            frame,
            {self._session.obj_id_to_idx(name): first for name, first in self._known().items()},
            num_memories=config.num_maskmem - 1,
            num_pointers=config.max_object_pointers_in_encoder - 1,
        )
        logits = out.pred_masks.float().reshape(len(objects), *out.pred_masks.shape[-2:])
        scores = out.object_score_logits.float().reshape(-1).tolist()
        ious = [float(iou.float().max()) for iou in self._caught]
        return {name: _Found(logits[i], scores[i], ious[i]) for i, name in enumerate(objects)}

    def _known(self) -> dict[int, int]:
        """First frames of the objects that the session has met."""
        return {name: first for name, first in self._first.items() if name in self._session.obj_ids}

    def _row(self, name: int, frame: int, found: _Found, prompt: VideoPrompt | None) -> ObjectFrame:
        if prompt is not None and prompt.mask is not None:
            mask = torch.as_tensor(prompt.mask).cpu()
            visible, object_score, predicted_iou = bool(mask.any()), math.nan, math.nan
        else:
            mask = (upscale(found.logits[None, None], self._transform) > 0)[0, 0].cpu()
            visible, object_score, predicted_iou = found.object_score > 0, found.object_score, found.predicted_iou
        area = int(mask.sum())
        if frame == self._first[name]:
            self._first_area[name] = area
        times = self._clip.times_s
        return ObjectFrame(
            object_id=name,
            frame=frame,
            time_s=math.nan if times is None else float(times[frame]),
            kind="tracked" if prompt is None else prompt.kind,
            visible=visible,
            object_score=object_score,
            predicted_iou=predicted_iou,
            area=area,
            area_ratio=area / self._first_area[name] if self._first_area[name] else math.nan,
            level=level_by_area(area, self._levels[name]),
            segmentation=encode_rle(mask),
        )

    def _levels_of(self, prompt: VideoPrompt) -> list[tuple[str, int]]:
        """Distinct levels of an object's first prompt and their areas; none where they are not valid."""
        if prompt.mask is None:
            prompts = prompt.prompts
        else:
            mask = torch.as_tensor(prompt.mask)
            if not bool(mask.any()):
                return []
            prompts = Prompts.from_masks(mask[None], self._image)
        with torch.no_grad():
            embedding = self._image.encode(self._clip[prompt.frame])
            hierarchy = self._image.decode(embedding, prompts).hierarchy()
        if not bool(hierarchy.valid[0]):
            return []
        return [(level, int(hierarchy.areas[0, i])) for i, level in enumerate(LEVELS) if hierarchy.distinct[0, i]]

    def _squashed(self, mask: Any) -> Float[Tensor, "1 1 S S"]:
        """A mask prompt in the model's frame, as transformers' processor makes it."""
        size = (self._image.image_size, self._image.image_size)
        given = torch.as_tensor(mask).float()[None, None]
        resized = nn.functional.interpolate(given, size, mode="bilinear", align_corners=False, antialias=True)
        return (resized >= 0.5).float()

    def _frame(self, index: int) -> Float[Tensor, "3 S S"]:
        resized = self._image._resize(np.ascontiguousarray(self._clip[index]), self._transform)
        return self._image.pixel_values(resized.to(self._segmenter.device))

    def _new_session(self) -> Any:
        import transformers

        name = type(self._model).__name__.replace("VideoModel", "VideoInferenceSession")
        kind = getattr(transformers, name, None) or getattr(_module_of(self._model), name)
        device = self._segmenter.device
        session = kind(
            video_height=self._clip.size_hw[0],
            video_width=self._clip.size_hw[1],
            inference_device=device,
            inference_state_device=device,
            video_storage_device=device,
            dtype=torch.float32,
        )
        session.processed_frames = LazyFrames(len(self._clip), self._frame)
        return session

    @contextmanager
    def _catching(self) -> Iterator[None]:
        """Inside, what the mask decoder predicts of its masks' IoU is kept."""
        self._caught.clear()
        hook = self._model.mask_decoder.register_forward_hook(lambda _, __, out: self._caught.append(out[1]))
        try:
            yield
        finally:
            hook.remove()


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
        InputError: A device that is not there, or another dtype.
    """
    if not name.startswith(PREFIX):
        raise UnsupportedModelError(
            explain(f"{name!r} does not track", f"a video model, such as {PREFIX}facebook/sam2.1-hiera-tiny")
        )
    target = choose_device(device)
    loaded = load_hf_model(name, kind="video")
    return VideoSegmenter(
        loaded.model, loaded.family, name=name, device=target, dtype=dtype, mean=loaded.mean, std=loaded.std
    )


def _module_of(model: Any) -> Any:
    import sys

    return sys.modules[type(model).__module__]


def _silent(stage: str, done: int, total: int) -> None:
    del stage, done, total
