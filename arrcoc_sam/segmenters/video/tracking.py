"""One clip and its prompts on their way through a model of transformers that tracks."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from arrcoc_sam._version import __version__
from arrcoc_sam.errors import UnsupportedModelError, explain
from arrcoc_sam.geometry import ImageTransform
from arrcoc_sam.hierarchy.levels import LEVELS
from arrcoc_sam.masks.rle import encode_rle
from arrcoc_sam.prompts import Prompts
from arrcoc_sam.segmenters.hf.segmenter import HuggingFaceSegmenter
from arrcoc_sam.segmenters.video.frames import Clip
from arrcoc_sam.segmenters.video.memory import LazyFrames, forget, objects_of
from arrcoc_sam.segmenters.video.prompts import VideoPrompt
from arrcoc_sam.segmenters.video.resume import TrackingCheckpoints, tracking_key
from arrcoc_sam.segmenters.video.tracks import ObjectFrame, level_by_area
from arrcoc_sam.upscaling import upscale

__all__ = ["Progress", "Tracking"]

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""


class _Step(NamedTuple):
    """A frame to be looked at: "prompts", "forward" or "backward"."""

    stage: str
    frame: int


class _Found(NamedTuple):
    """An object on a frame as the model answers it."""

    logits: Float[Tensor, "h w"]
    object_score: float
    predicted_iou: float


class Tracking:
    """One clip and its prompts on their way through the model."""

    def __init__(
        self, segmenter: HuggingFaceSegmenter, clip: Clip, prompts: Sequence[VideoPrompt], progress: Progress
    ) -> None:
        """Make ready; :meth:`run` does the work.

        Args:
            segmenter: A model that tracks, as a segmenter of images.
            clip: The frames.
            prompts: Checked against the clip.
            progress: Told how far it is.
        """
        self._image, self._clip, self._progress = segmenter, clip, progress
        self._model: Any = segmenter.model
        self._transform: ImageTransform = self._image.transform_for(clip.size_hw)
        self._prompts = {(prompt.object_id, prompt.frame): prompt for prompt in prompts}
        self._first: dict[int, int] = {}
        for prompt in prompts:
            self._first[prompt.object_id] = min(prompt.frame, self._first.get(prompt.object_id, prompt.frame))
        self._levels: dict[int, list[tuple[str, int]]] = {}
        self._first_area: dict[int, int] = {}
        self._caught: list[Tensor] = []
        self._session = self._new_session()

    def run(self, checkpoints: TrackingCheckpoints | None = None) -> Iterator[ObjectFrame]:
        """All rows: prompted frames, then forward, then backward.

        Args:
            checkpoints: Where to go on from, and where to put the state every so many steps.
        """
        steps, done, key = self._steps(), 0, ""
        if checkpoints is not None:
            key = self._key()
            if (kept := checkpoints.resume(key)) is not None:
                self._restore(kept.memory)
                done = kept.done
                yield from kept.rows
        totals = Counter(step.stage for step in steps)
        passed = Counter(step.stage for step in steps[:done])
        for number, step in enumerate(steps[done:], done + 1):
            for row in self._rows_of(step):
                if checkpoints is not None:
                    checkpoints.add(row)
                yield row
            passed[step.stage] += 1
            self._progress(step.stage, passed[step.stage], totals[step.stage])
            if checkpoints is not None and number % checkpoints.every == 0:
                checkpoints.save(key, number, self._memory())

    def _steps(self) -> list[_Step]:
        """A step a frame and stage, in order."""
        start, end = min(self._first.values()), max(self._first.values())
        return [
            *(_Step("prompts", frame) for frame in sorted({frame for _, frame in self._prompts})),
            *(_Step("forward", frame) for frame in range(start, len(self._clip))),
            *(_Step("backward", frame) for frame in range(end - 1, -1, -1)),
        ]

    def _rows_of(self, step: _Step) -> Iterator[ObjectFrame]:
        frame = step.frame
        if step.stage == "prompts":
            return self._prompted(frame)
        if step.stage == "forward":
            objects = [o for o in self._first if self._first[o] < frame and (o, frame) not in self._prompts]
            return self._followed(frame, objects, reverse=False)
        return self._followed(frame, [o for o in self._first if self._first[o] > frame], reverse=True)

    def _key(self) -> str:
        """What a state has to fit: clip, prompts, weights, precision, libraries."""
        import transformers

        facts = (self._image.checkpoint_hash, str(self._image.dtype), __version__, transformers.__version__)
        return tracking_key(self._clip, list(self._prompts.values()), *facts, torch.__version__)

    def _memory(self) -> dict[str, Any]:
        """What later frames depend on."""
        return {
            "objects": list(self._session.obj_ids),
            "outputs": dict(self._session.output_dict_per_obj),
            "levels": {name: [list(level) for level in levels] for name, levels in self._levels.items()},
            "first_area": dict(self._first_area),
        }

    def _restore(self, memory: dict[str, Any]) -> None:
        for name in memory["objects"]:
            self._session.obj_id_to_idx(name)
        self._session.output_dict_per_obj.update(_on_device(memory["outputs"], self._image.device))
        self._levels = {name: [(level, area) for level, area in levels] for name, levels in memory["levels"].items()}
        self._first_area = memory["first_area"]

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
        return self._image.pixel_values(resized.to(self._image.device))

    def _new_session(self) -> Any:
        import transformers

        name = type(self._model).__name__.replace("VideoModel", "VideoInferenceSession")
        kind = getattr(transformers, name, None) or getattr(_module_of(self._model), name)
        device = self._image.device
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


def _on_device(value: Any, device: torch.device) -> Any:
    """Nested dictionaries and lists with their tensors on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: _on_device(inner, device) for name, inner in value.items()}
    return [_on_device(inner, device) for inner in value] if isinstance(value, list) else value


def _module_of(model: Any) -> Any:
    return sys.modules[type(model).__module__]
