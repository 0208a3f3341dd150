"""Memory of a session over 500 frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hf_small_models import VIDEO_NAMES, build, family

from arrcoc_sam.segmenters import video
from arrcoc_sam.segmenters.video import VideoSegmenter
from arrcoc_sam.segmenters.video_frames import Clip
from arrcoc_sam.segmenters.video_prompts import VideoPrompt


class Long(Clip):
    """Frames that are made when they are read."""

    name, size_hw = "long", (48, 64)

    def __len__(self) -> int:
        return 500

    def _read(self, index: int) -> np.ndarray:
        image = np.full((*self.size_hw, 3), 60, dtype=np.uint8)
        image[10:30, index % 40 : index % 40 + 20] = (220, 180, 40)
        return image


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", VIDEO_NAMES)
def test_500_frames_take_what_40_take(name, monkeypatch):
    """Both ways from frame 100: bytes of every tensor that the session holds, after each frame."""
    held: dict[int, int] = {}
    original = video.forget

    def measured(session: Any, frame: int, anchors: Any, **keywords: Any) -> None:
        original(session, frame, anchors, **keywords)
        kept = [
            value.untyped_storage()
            for outputs in session.output_dict_per_obj.values()
            for frames in outputs.values()
            for output in frames.values()
            for value in output.values()
            if hasattr(value, "untyped_storage")
        ]
        held[frame] = sum({storage.data_ptr(): storage.nbytes() for storage in kept}.values())

    monkeypatch.setattr(video, "forget", measured)
    tracker = VideoSegmenter(build(name, video=True), family(name), name=name)
    tracks = tracker.track(Long(), [VideoPrompt(100, points_xy=[[30, 20]])])
    assert len(tracks) == 500
    assert {held[frame] for frame in range(140, 500)} == {held[140]}
    assert {held[frame] for frame in range(60)} == {held[0]}
    print(f"{name}: {held[499]:,} bytes after 400 frames forward, {held[0]:,} after 100 backward")
