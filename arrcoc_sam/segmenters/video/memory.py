"""A tracking session of transformers that stays small: frames are read when looked at, memories forgotten when unused.

transformers keeps every preprocessed frame (12.6 MB at 1,024 px) and for every frame and object its masks and memories
(about 6 MB), for ever. What tracking reads is much less: the prompted frames, the memories of the ``num_maskmem - 1``
frames before (or after, going backwards), and the object pointers of ``max_object_pointers_in_encoder - 1``.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

__all__ = ["LazyFrames", "forget", "objects_of"]


class LazyFrames:
    """Stands in for a session's dictionary of preprocessed frames; makes the one that is asked for.

    Args:
        num_frames: How many there are.
        make: Index to the frame as the model takes it.
    """

    def __init__(self, num_frames: int, make: Callable[[int], Float[Tensor, "3 S S"]]) -> None:
        self._num_frames = num_frames
        self._make = make

    def __len__(self) -> int:
        return self._num_frames

    def __getitem__(self, index: int) -> Float[Tensor, "3 S S"]:
        return self._make(index)


def objects_of(session: Any, objects: Sequence[int], *, new: bool) -> Any:
    """A session of some of the objects, which shares its features, inputs and memories with the whole one.

    The model runs all objects of the session that it is given. This one lets it run those that are to be followed on
    a frame: an object is not followed through frames before its first prompt while others go forward.

    Args:
        session: The whole session.
        objects: Indices of its objects, from 0.
        new: Whether these objects have prompts on the frame that is run next.

    Returns:
        A shallow copy.
    """
    part = copy.copy(session)
    ids = [session._obj_idx_to_id[index] for index in objects]
    part._obj_id_to_idx = OrderedDict((name, index) for index, name in enumerate(ids))
    part._obj_idx_to_id = OrderedDict(enumerate(ids))
    part.obj_ids = ids
    for name in ("point_inputs_per_obj", "mask_inputs_per_obj", "output_dict_per_obj", "frames_tracked_per_obj"):
        whole = getattr(session, name)
        setattr(part, name, {index: whole[old] for index, old in enumerate(objects)})
    part.obj_with_new_inputs = list(ids) if new else []
    return part


def forget(session: Any, frame: int, anchors: Mapping[int, int], *, num_memories: int, num_pointers: int) -> None:
    """Drop what no later frame will read.

    Args:
        session: The session.
        frame: The frame that was just run.
        anchors: For each object, the frame that tracking starts from again in the other direction.
        num_memories: Frames back whose spatial memory is read.
        num_pointers: Frames back whose object pointer is read.
    """
    for name, outputs in session.output_dict_per_obj.items():
        centres = (frame, anchors[name])
        for output in outputs["cond_frame_outputs"].values():
            output.pop("high_res_masks", None)
        tracked = outputs["non_cond_frame_outputs"]
        for index in list(tracked):
            distance = min(abs(index - centre) for centre in centres)
            if distance > max(num_memories, num_pointers):
                del tracked[index]
                continue
            for name in ("high_res_masks", "pred_masks"):
                tracked[index].pop(name, None)
            if distance > num_memories:
                tracked[index].pop("maskmem_features", None)
                tracked[index].pop("maskmem_pos_enc", None)
