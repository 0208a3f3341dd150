"""Memory of a session over 500 frames: real ones where shared/data is at hand, made ones elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hf_small_models import VIDEO_NAMES, build, family

from arrcoc_sam.segmenters.video import tracking
from arrcoc_sam.segmenters.video.frames import Clip, open_clip
from arrcoc_sam.segmenters.video.prompts import VideoPrompt
from arrcoc_sam.segmenters.video.segmenter import VideoSegmenter

STATUS = Path("/proc/self/status")  # Linux only
BEDROOM = Path(__file__).parents[3] / "shared" / "data" / "bedroom"


class ToAndFro(Clip):
    """A clip played forward and backward again and again, 500 frames long."""

    def __init__(self, whole: Clip) -> None:
        self.name, self.size_hw, self._whole = whole.name, whole.size_hw, whole

    def __len__(self) -> int:
        return 500

    def _read(self, index: int) -> np.ndarray:
        last = len(self._whole) - 1
        return self._whole[last - abs(last - index % (2 * last))]


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
    resident: dict[int, int] = {}
    original = tracking.forget

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
        if STATUS.exists():
            resident[frame] = int(STATUS.read_text().partition("VmRSS:")[2].split()[0]) << 10

    monkeypatch.setattr(tracking, "forget", measured)
    tracker = VideoSegmenter(build(name, video=True), family(name), name=name)
    clip = ToAndFro(open_clip(BEDROOM)) if BEDROOM.is_dir() else Long()
    tracks = tracker.track(clip, [VideoPrompt(100, points_xy=[[30, 20]])])
    assert len(tracks) == 500
    assert {held[frame] for frame in range(140, 500)} == {held[140]}
    assert {held[frame] for frame in range(60)} == {held[0]}
    print(f"{name}: {held[499]:,} bytes after 400 frames forward, {held[0]:,} after 100 backward; {clip.name}")
    if resident:
        grown = resident[499] - resident[140]
        print(f"process: {resident[140] >> 20} MiB at frame 140, {resident[499] >> 20} MiB at frame 499")
        assert grown < 32 << 20  # 359 frames of the model's alone would take 67 MiB, those of the bedroom 533 MiB
