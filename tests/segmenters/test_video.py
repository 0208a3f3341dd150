"""Tracking: transformers' own numbers with less memory, both directions, several objects, occlusion, honest scores.

Small models with random weights: their masks mean nothing, what is tested is that every number comes from where it
should. What they can't show is whether SAM 2 follows an object well.
"""

from __future__ import annotations

import errno
import math
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hf_small_models import VIDEO_NAMES, build, family
from PIL import Image

from arrcoc_sam.errors import DataError, ImageReadError, InputError, OutputError, ShapeError, UnsupportedModelError
from arrcoc_sam.masks.rle import decode_rle
from arrcoc_sam.prompts import Prompts
from arrcoc_sam.segmenters.video.frames import ArrayClip, Clip
from arrcoc_sam.segmenters.video.prompts import VideoPrompt
from arrcoc_sam.segmenters.video.resume import TrackingCheckpoints
from arrcoc_sam.segmenters.video.segmenter import VideoSegmenter, load_video_segmenter
from arrcoc_sam.segmenters.video.tracks import ABSTAIN, ObjectFrame, VideoTracks, level_by_area

SIZE_HW = (60, 90)
BEDROOM = Path(__file__).parents[3] / "shared" / "data" / "bedroom"

PROMPT = VideoPrompt(0, points_xy=[[15, 30]])

_built: dict[str, VideoSegmenter] = {}


def tracker(name: str) -> VideoSegmenter:
    if name not in _built:
        _built[name] = VideoSegmenter(build(name, video=True), family(name), name=f"small {name}")
    return _built[name]


def clip_of(num_frames: int, *, erased: range = range(0)) -> ArrayClip:
    """A bright disc that moves to the right over a grey ground, absent from some frames."""
    y, x = np.mgrid[0 : SIZE_HW[0], 0 : SIZE_HW[1]]
    frames = []
    for index in range(num_frames):
        image = np.full((*SIZE_HW, 3), 90, dtype=np.uint8)
        if index not in erased:
            image[(y - 30) ** 2 + (x - 15 - 2 * index) ** 2 < 100] = (240, 200, 40)
        frames.append(image)
    return ArrayClip(frames)


def own_session(segmenter: VideoSegmenter, clip: Clip) -> Any:
    """A session as transformers' processor makes it, all frames in it."""
    import transformers.models.edgetam_video.modeling_edgetam_video as edgetam
    import transformers.models.sam2_video.modeling_sam2_video as sam2

    kind = (
        sam2.Sam2VideoInferenceSession
        if segmenter.segmenter.family.name == "SAM 2"
        else (edgetam.EdgeTamVideoInferenceSession)
    )
    image, transform = segmenter.segmenter, segmenter.segmenter.transform_for(clip.size_hw)
    frames = torch.stack([image.pixel_values(image._resize(frame, transform)) for frame in clip])
    return kind(video=frames, video_height=clip.size_hw[0], video_width=clip.size_hw[1], dtype=torch.float32)


def expected_masks(segmenter: VideoSegmenter, logits: torch.Tensor, clip: Clip) -> torch.Tensor:
    from arrcoc_sam.upscaling import upscale

    shaped = logits.reshape(1, 1, *logits.shape[-2:]).float()
    return upscale(shaped, segmenter.segmenter.transform_for(clip.size_hw))[0, 0] > 0


@pytest.mark.parametrize("name", VIDEO_NAMES)
@pytest.mark.parametrize("kind", ["click", "box", "click+box", "mask"])
def test_numbers_of_its_own_propagation(name, kind):
    """From frame 9 of 24 forward and then backward: longer than every memory, so that forgetting too much shows."""
    segmenter, clip = tracker(name), clip_of(24)
    mask = np.zeros(SIZE_HW, dtype=bool)
    mask[20:41, 23:44] = True
    prompt = VideoPrompt(
        9,
        7,
        points_xy=[[33, 30]] if "click" in kind else None,
        box_xyxy=[22.0, 19, 45, 42] if "box" in kind else None,
        mask=mask if kind == "mask" else None,
    )
    assert prompt.kind == kind
    tracks = segmenter.track(clip, [prompt])
    assert [row.frame for row in tracks.of(7)] == list(range(24))

    session = own_session(segmenter, clip)
    scale = np.array([128 / 90, 128 / 60])
    index = session.obj_id_to_idx(7)
    if kind == "mask":
        squashed = torch.nn.functional.interpolate(
            torch.from_numpy(mask).float()[None, None], (128, 128), mode="bilinear", antialias=True
        )
        session.add_mask_inputs(index, 9, (squashed >= 0.5).float())
    else:
        points = ([[22.0, 19], [45, 42]] if "box" in kind else []) + ([[33, 30]] if "click" in kind else [])
        labels = ([2, 3] if "box" in kind else []) + ([1] if "click" in kind else [])
        coordinates = torch.tensor(np.array(points) * scale, dtype=torch.float32)[None, None]
        inputs = {"point_coords": coordinates, "point_labels": torch.tensor([[labels]], dtype=torch.int32)}
        session.add_point_inputs(index, 9, inputs)
    session.obj_with_new_inputs = [7]
    outputs = {9: segmenter.model(session, frame_idx=9)}
    for reverse in (False, True):
        for out in segmenter.model.propagate_in_video_iterator(session, start_frame_idx=9, reverse=reverse):
            outputs.setdefault(out.frame_idx, out)
    for row in tracks.rows:
        out = outputs[row.frame]
        if kind == "mask" and row.frame == 9:
            assert torch.equal(decode_rle(row.segmentation), torch.from_numpy(mask))
            continue
        assert row.object_score == pytest.approx(float(out.object_score_logits), abs=1e-4)
        assert torch.equal(decode_rle(row.segmentation), expected_masks(segmenter, out.pred_masks, clip))
        assert row.visible == (row.object_score > 0)
        assert row.kind == ("tracked" if row.frame != 9 else kind)


@pytest.mark.parametrize("name", VIDEO_NAMES)
def test_predicted_iou_is_the_decoders(name):
    """On a clicked frame it is that of the image model with the same weights: the best of the three."""
    segmenter, clip = tracker(name), clip_of(3)
    row = segmenter.track(clip, [VideoPrompt(0, points_xy=[[15, 30]])]).of(1)[0]
    image = segmenter.segmenter
    with torch.no_grad():
        cand = image.decode(image.encode(clip[0]), Prompts([[[15.0, 30]]]))
    assert row.predicted_iou == pytest.approx(float(cand.predicted_iou.max()), abs=1e-4)
    assert row.object_score == pytest.approx(float(cand.object_score[0]), abs=1e-4)
    assert 0 < row.predicted_iou < 1


@pytest.mark.parametrize("name", VIDEO_NAMES)
def test_a_mask_prompt_has_no_score(name):
    """transformers gives it a dummy IoU of 1 and a dummy object score of ±10."""
    mask = torch.zeros(SIZE_HW, dtype=torch.bool)
    mask[20:40, 5:25] = True
    tracks = tracker(name).track(clip_of(4), [VideoPrompt(1, mask=mask), VideoPrompt(3, 2, mask=~mask & False)])
    prompted, empty = tracks.of(1)[1], tracks.of(2)[3]
    for row in (prompted, empty):
        assert row.kind == "mask"
        assert math.isnan(row.predicted_iou)
        assert math.isnan(row.object_score)
    assert prompted.visible
    assert not empty.visible
    assert prompted.area == int(mask.sum())
    for row in tracks.rows:
        if row.kind == "tracked":
            assert 0 < row.predicted_iou < 1
            assert math.isfinite(row.object_score)
    assert math.isnan(tracks.of(2)[0].area_ratio)


@pytest.mark.parametrize("name", VIDEO_NAMES)
def test_objects_do_not_meet(name):
    """Several objects with prompts of several kinds on several frames: each as if it were alone."""
    segmenter, clip = tracker(name), clip_of(8)
    prompts = [
        VideoPrompt(5, 3, points_xy=[[25, 30], [80, 10]], labels=[1, 0]),
        VideoPrompt(2, 8, box_xyxy=[8.0, 19, 31, 42]),
        VideoPrompt(6, 8, points_xy=[[27, 30]]),
        VideoPrompt(2, 5, mask=np.pad(np.ones((20, 20), dtype=bool), ((20, 20), (10, 60)))),
    ]
    together = segmenter.track(clip, prompts)
    assert together.object_ids == (3, 5, 8)
    assert len(together) == 3 * 8
    for name_of in together.object_ids:
        alone = segmenter.track(clip, [prompt for prompt in prompts if prompt.object_id == name_of])
        for row, expected in zip(together.of(name_of), alone.rows, strict=True):
            assert (row.frame, row.kind) == (expected.frame, expected.kind)
            assert row.object_score == pytest.approx(expected.object_score, abs=1e-3, nan_ok=True)
            assert row.predicted_iou == pytest.approx(expected.predicted_iou, abs=1e-3, nan_ok=True)
            different = decode_rle(row.segmentation) ^ decode_rle(expected.segmentation)
            assert different.float().mean() < 0.002


def test_an_object_that_hides_is_followed_end_to_end(monkeypatch):
    """The disc is gone from frames 4 to 6; the score head is told so by the frames themselves."""
    segmenter = VideoSegmenter(build("SAM 2", video=True), family("SAM 2"), name="small")
    clip = clip_of(10, erased=range(4, 7))
    decoder = segmenter.model.mask_decoder
    original = decoder.pred_obj_score_head.forward

    def seen(tokens: torch.Tensor) -> torch.Tensor:
        # random weights can't tell; the frame that the session looks at can
        shown = bool(current["frame"].max() > 1)
        return original(tokens) * 0 + (3.0 if shown else -3.0)

    current: dict[str, torch.Tensor] = {}
    features = segmenter.model.get_image_features

    def remember(pixels: torch.Tensor, **keywords: Any) -> Any:
        current["frame"] = pixels
        return features(pixels, **keywords)

    monkeypatch.setattr(decoder.pred_obj_score_head, "forward", seen)
    monkeypatch.setattr(segmenter.model, "get_image_features", remember)
    tracks = segmenter.track(clip, [VideoPrompt(0, points_xy=[[15, 30]])])
    assert [row.visible for row in tracks.rows] == [index not in range(4, 7) for index in range(10)]
    hidden = [row for row in tracks.rows if not row.visible]
    assert all(row.area == 0 and row.level == ABSTAIN and row.object_score == -3 for row in hidden)
    assert [(o.object_id, o.first, o.last) for o in tracks.occlusions()] == [(1, 4, 6)]


def test_levels_are_named_by_the_first_frame():
    segmenter, clip = tracker("SAM 2"), clip_of(4)
    tracks = segmenter.track(clip, [VideoPrompt(0, points_xy=[[15, 30]])])
    image = segmenter.segmenter
    with torch.no_grad():
        hierarchy = image.decode(image.encode(clip[0]), Prompts([[[15.0, 30]]])).hierarchy()
    areas = [
        (level, int(hierarchy.areas[0, i]))
        for i, level in enumerate(("whole", "part", "subpart"))
        if hierarchy.distinct[0, i] and hierarchy.valid[0]
    ]
    for row in tracks.rows:
        assert row.level == level_by_area(row.area, areas)
        assert row.area_ratio == pytest.approx(row.area / tracks.rows[0].area)
    assert level_by_area(0, [("whole", 100)]) == ABSTAIN
    assert level_by_area(100, []) == ABSTAIN
    assert [level_by_area(a, [("whole", 1000), ("part", 100)]) for a in (2000, 320, 310, 5)] == [
        "whole",
        "whole",
        "part",
        "part",
    ]


@pytest.mark.parametrize("name", VIDEO_NAMES)
def test_memory_does_not_grow(name, monkeypatch):
    """After 60 frames the session holds what it held after 40, and no frame."""
    from arrcoc_sam.segmenters.video import tracking

    held: list[tuple[int, int]] = []
    original = tracking.forget

    def measured(session: Any, frame: int, anchors: Any, **keywords: Any) -> None:
        original(session, frame, anchors, **keywords)
        held.append((frame, _bytes(session)))

    monkeypatch.setattr(tracking, "forget", measured)
    clip = clip_of(60)
    tracker(name).track(clip, [VideoPrompt(0, points_xy=[[15, 30]]), VideoPrompt(0, 2, box_xyxy=[5.0, 20, 25, 40])])
    sizes = dict(held)
    assert sizes[59] == sizes[40]
    assert sizes[59] < 40 * sizes[0]
    whole = 3 * 128 * 128 * 4 * 60  # what the frames alone would take
    assert sizes[59] < whole


def _bytes(session: Any) -> int:
    tensors = [
        value
        for outputs in session.output_dict_per_obj.values()
        for kept in outputs.values()
        for output in kept.values()
        for value in output.values()
        if isinstance(value, torch.Tensor)
    ]
    # slices of one batch share their storage
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in tensors}
    return sum(storages.values())


def test_frames_are_let_go():
    """Of the clip's frames, only the one that is looked at is alive."""

    class Counted(Clip):
        name, size_hw = "counted", SIZE_HW

        def __init__(self) -> None:
            self.alive: list[weakref.ref[Any]] = []
            self.most = 0

        def __len__(self) -> int:
            return 12

        def _read(self, index: int) -> np.ndarray:
            image = np.full((*SIZE_HW, 3), 10 * index, dtype=np.uint8)
            self.alive = [ref for ref in self.alive if ref() is not None] + [weakref.ref(image)]
            self.most = max(self.most, len(self.alive))
            return image

    clip = Counted()
    tracker("SAM 2").track(clip, [VideoPrompt(6, points_xy=[[15, 30]])])
    assert clip.most <= 3


def test_tables_come_back(tmp_path):
    tracks = tracker("SAM 2").track(
        clip_of(5), [VideoPrompt(2, points_xy=[[15, 30]]), VideoPrompt(0, 4, mask=_square())]
    )
    back = VideoTracks.from_parquet(tracks.to_parquet(tmp_path / "tracks.parquet"))
    assert back.size_hw == SIZE_HW
    assert back.num_frames == 5
    assert back.metadata["checkpoint_hash"] == tracks.metadata["checkpoint_hash"]
    for row, expected in zip(back.rows, tracks.rows, strict=True):
        assert row.segmentation == expected.segmentation
        assert row.visible == expected.visible
        assert row.predicted_iou == pytest.approx(expected.predicted_iou, nan_ok=True)
    frame = back.to_frame()
    assert len(frame) == 10
    assert set(frame["object_id"]) == {1, 4}
    (tmp_path / "other.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="can't be read as tracks"):
        VideoTracks.from_parquet(tmp_path / "other.parquet")


def _square() -> np.ndarray:
    return np.pad(np.ones((20, 20), dtype=bool), ((20, 20), (10, 60)))


def test_progress_is_told():
    said: list[tuple[str, int, int]] = []
    tracker("SAM 2").track(
        clip_of(6), [VideoPrompt(2, points_xy=[[15, 30]])], progress=lambda *words: said.append(words)
    )
    assert said[0] == ("prompts", 1, 1)
    assert ("forward", 4, 4) in said
    assert said[-1] == ("backward", 2, 2)


class Breaking(Clip):
    """A clip whose reader is interrupted on some frame, once that many frames were read."""

    def __init__(self, whole: Clip, after: int | None = None) -> None:
        self.name, self.size_hw = whole.name, whole.size_hw
        self._whole, self._after, self.read = whole, after, []

    def __len__(self) -> int:
        return len(self._whole)

    def _read(self, index: int) -> np.ndarray:
        if self._after is not None and len(self.read) >= self._after:
            raise KeyboardInterrupt
        self.read.append(index)
        return self._whole[index]


RESUMED = [
    VideoPrompt(5, 3, points_xy=[[25, 30], [80, 10]], labels=[1, 0]),
    VideoPrompt(8, 8, box_xyxy=[20.0, 19, 43, 42]),
    VideoPrompt(7, 3, mask=np.pad(np.ones((20, 20), dtype=bool), ((20, 20), (20, 50)))),
]


@pytest.mark.parametrize("name", VIDEO_NAMES)
@pytest.mark.parametrize("after", [13, 21])  # while it goes forward, while it goes backward
def test_a_run_goes_on_where_it_broke_off(name, after, tmp_path):
    segmenter, clip = tracker(name), clip_of(16)
    expected = segmenter.track(clip, RESUMED)
    with pytest.raises(KeyboardInterrupt):
        segmenter.track(Breaking(clip, after), RESUMED, checkpoints=TrackingCheckpoints(tmp_path / "state", every=4))
    rest, checkpoints = Breaking(clip), TrackingCheckpoints(tmp_path / "state", every=4)
    tracks = segmenter.track(rest, RESUMED, checkpoints=checkpoints)
    assert 4 <= checkpoints.resumed < 22
    assert tracks.rows == expected.rows or all(
        a.segmentation == b.segmentation and a.level == b.level and str(a.object_score) == str(b.object_score)
        for a, b in zip(tracks.rows, expected.rows, strict=True)
    )  # NaN is not NaN
    anew = Breaking(clip)
    segmenter.track(anew, RESUMED)
    assert len(rest.read) < len(anew.read)
    checkpoints.clear()
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_state_starts_anew_and_another_run_s_is_refused(tmp_path):
    segmenter, clip, prompt = tracker("SAM 2"), clip_of(6), VideoPrompt(0, points_xy=[[15, 30]])

    def resumed(prompts: list[VideoPrompt]) -> int:
        checkpoints = TrackingCheckpoints(tmp_path / "state", every=3)
        assert len(segmenter.track(clip, prompts, checkpoints=checkpoints)) == 6
        return checkpoints.resumed

    assert resumed([prompt]) == 0
    assert resumed([prompt]) == 6
    with pytest.raises(DataError, match=r"holds a run of other prompts, .* name another folder \(--out\), or"):
        resumed([VideoPrompt(0, points_xy=[[16, 30]])])
    assert resumed([prompt]) == 6
    state, rows = tmp_path / "state" / "state.pt", tmp_path / "state" / "rows.jsonl"
    rows.write_bytes(rows.read_bytes()[:-20])
    assert resumed([prompt]) == 0
    with rows.open("ab") as file:  # written after the last state, by a run that was killed
        file.write(b'{"object_id": 1,')
    assert resumed([prompt]) == 6
    state.write_bytes(state.read_bytes()[:100])
    other = state.with_name("notes.txt")
    other.write_text("mine")
    (state.parent / ".state-abc.pt").touch()  # what a kill leaves of a state that was being written
    assert resumed([prompt]) == 0
    TrackingCheckpoints(state.parent).clear()
    assert list(state.parent.iterdir()) == [other]


@pytest.mark.parametrize("place", ["rows", "state"])
def test_a_full_disk_leaves_the_last_state(place, tmp_path, monkeypatch):
    rows = [ObjectFrame(1, frame, 0.0, "tracked", True, 1.0, 0.5, 9, 1.0, "whole", {}) for frame in range(3)]
    checkpoints = TrackingCheckpoints(tmp_path / "state")
    checkpoints.add(rows[0])
    checkpoints.save("key", 1, {})

    def full(*_: object) -> None:
        if place == "rows":
            with (tmp_path / "state" / "rows.jsonl").open("ab") as file:
                file.write(b'{"object_id": 1,')
            raise OSError(errno.ENOSPC, "No space left on device")
        raise RuntimeError("basic_ios::clear: iostream error")

    checkpoints.add(rows[1])
    with monkeypatch.context() as disk:
        disk.setattr("os.fsync" if place == "rows" else "torch.save", full)
        with pytest.raises(OutputError, match=r"state\.pt can't be written"):
            checkpoints.save("key", 2, {})
    kept = TrackingCheckpoints(tmp_path / "state").resume("key")
    assert (kept.done, kept.rows) == (1, rows[:1])
    with (tmp_path / "state" / "rows.jsonl").open("ab") as file:
        file.write(b'{"object_id": 1,')
    checkpoints.add(rows[2])  # whoever made room goes on
    checkpoints.save("key", 3, {})
    kept = TrackingCheckpoints(tmp_path / "state").resume("key")
    assert (kept.done, kept.rows) == (3, rows)


def test_numbers_of_numpy_are_kept_on_disk_too(as_at_run_time, tmp_path):
    prompts = [VideoPrompt(np.int64(1), np.int32(4), points_xy=[[15, 30]])]
    checkpoints = TrackingCheckpoints(tmp_path / "state", every=1)
    tracks = tracker("SAM 2").track(clip_of(3), prompts, checkpoints=checkpoints)
    assert tracks.object_ids == (4,)
    again = tracker("SAM 2").track(clip_of(3), [VideoPrompt(1, 4, points_xy=[[15, 30]])], checkpoints=checkpoints)
    assert checkpoints.resumed == 4
    assert [(row.object_id, row.frame) for row in again.rows] == [(row.object_id, row.frame) for row in tracks.rows]


@pytest.mark.parametrize("object_id", [1.5, "cat", [1], None, True, 2**63, -(2**63) - 1, math.nan])
def test_an_object_is_a_whole_number_that_tables_hold(as_at_run_time, object_id):
    with pytest.raises(InputError, match=r"object_id=.*; expected a whole number"):
        VideoPrompt(0, object_id, points_xy=[[1, 1]])


def test_prompts_that_are_wrong(as_at_run_time):
    segmenter, clip = tracker("SAM 2"), clip_of(5)
    with pytest.raises(InputError, match="no prompt"):
        segmenter.track(clip, [])
    with pytest.raises(
        InputError, match="a prompt of object 1 on frame 5 of the clip, which has 5 frames; expected 0 to 4"
    ):
        segmenter.track(clip, [VideoPrompt(5, points_xy=[[15, 30]])])
    with pytest.raises(InputError, match="on frame -1"):
        segmenter.track(clip, [VideoPrompt(-1, points_xy=[[15, 30]])])
    with pytest.raises(InputError, match=r"\(95, 30\).*lies outside"):
        segmenter.track(clip, [VideoPrompt(0, points_xy=[[95, 30]])])
    with pytest.raises(InputError, match="two prompts of object 1 on frame 0"):
        segmenter.track(clip, [VideoPrompt(0, points_xy=[[15, 30]])] * 2)
    with pytest.raises(ShapeError, match=r"\(60, 90\), the size of the frames"):
        segmenter.track(clip, [VideoPrompt(0, mask=np.ones((9, 9), dtype=bool))])
    with pytest.raises(InputError, match="no points, no box and no mask"):
        VideoPrompt(0)
    with pytest.raises(InputError, match="a mask beside points or a box"):
        VideoPrompt(0, points_xy=[[1, 1]], mask=_square())
    with pytest.raises(InputError, match=r"frame=0\.5"):
        VideoPrompt(0.5, points_xy=[[1, 1]])


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: load_video_segmenter(None), "name is None; expected a name, hf:<repository or folder>"),
        (lambda: load_video_segmenter(Path("a/b")), r"name is PosixPath\('a/b'\).* Mend: hf:<folder> as text"),
        (lambda: tracker("SAM 2").track(None, [PROMPT]), "clip is None; expected a folder of images, a video file or"),
        (lambda: tracker("SAM 2").track(np.zeros((2, 4, 4, 3), np.uint8), [PROMPT]), r"clip is a uint8 .* ArrayClip\("),
        (lambda: tracker("SAM 2").track([np.zeros((4, 4, 3), np.uint8)], [PROMPT]), r"clip is a list of 1.* ArrayClip"),
        (lambda: tracker("SAM 2").track(clip_of(1), None), "no prompt"),
        (lambda: tracker("SAM 2").track(clip_of(1), PROMPT), r"prompts is VideoPrompt.* Mend: \[prompt\]"),
        (
            lambda: tracker("SAM 2").track(clip_of(1), [PROMPT, {"frame": 0}]),
            r"prompts\[1\] is .* expected a VideoPrompt",
        ),
        (lambda: VideoPrompt(0, points_xy=[[1, 2]], labels=["a"]), r"labels is a list of 1; expected numbers"),
        (lambda: VideoPrompt(0, points_xy=[[1, 2]] * 3, labels=[[1], [0, 1]]), r"labels is a list of 2; expected"),
        (lambda: VideoPrompt(0, points_xy=[[1, 2]], labels="ab"), r"labels is 'ab'; expected numbers of shape \(n,\)"),
        (lambda: VideoPrompt(0, labels=[1], mask=_square()), "labels beside a mask"),
        (lambda: TrackingCheckpoints("state", every=0), "every=0; expected a whole number, at least 1"),
    ],
)
def test_other_things_in_their_place(as_at_run_time, made, said):
    with pytest.raises(InputError, match=said):
        made()


def test_a_clip_that_was_opened_here_is_closed(tmp_path, monkeypatch):
    for index, frame in enumerate(clip_of(2)):
        Image.fromarray(frame).save(tmp_path / f"{index}.png")
    closed = []
    monkeypatch.setattr(Clip, "close", lambda clip: closed.append(clip.name))
    tracker("SAM 2").track(tmp_path, [PROMPT])
    with pytest.raises(InputError, match="no prompt"):
        tracker("SAM 2").track(tmp_path, [])
    assert closed == [str(tmp_path)] * 2
    tracker("SAM 2").track(clip_of(2), [PROMPT])  # its owner may go on with it
    assert len(closed) == 2


def test_models_that_are_wrong(tmp_path):
    with pytest.raises(UnsupportedModelError, match="'sam_vit_b' does not track"):
        load_video_segmenter("sam_vit_b")
    with pytest.raises(UnsupportedModelError, match="is a Sam2Model; expected a Sam2VideoModel"):
        VideoSegmenter(build("SAM 2"), family("SAM 2"), name="image")
    with pytest.raises(ImageReadError, match="does not exist"):
        tracker("SAM 2").track(tmp_path / "none.mp4", [VideoPrompt(0, points_xy=[[1, 1]])])


@pytest.mark.parametrize("name", VIDEO_NAMES)
def test_a_folder_gives_the_tracker_back(name, tmp_path):
    expected = tracker(name)
    expected.model.save_pretrained(tmp_path)
    came = load_video_segmenter(f"hf:{tmp_path}", device="cpu")
    assert came.checkpoint_hash == expected.checkpoint_hash
    prompts = [VideoPrompt(0, points_xy=[[15, 30]])]
    for row, other in zip(came.track(clip_of(3), prompts).rows, expected.track(clip_of(3), prompts).rows, strict=True):
        assert row.object_score == pytest.approx(other.object_score, abs=1e-4)


@pytest.mark.skipif(not BEDROOM.is_dir(), reason="the frames of shared/data are not here")
@pytest.mark.parametrize("name", VIDEO_NAMES)
def test_real_frames(name):
    """The example clip of SAM 2's notebook, every second frame: shapes and finite numbers."""

    class Few(Clip):
        def __init__(self, whole: Clip) -> None:
            self.name, self.size_hw, self._whole = whole.name, whole.size_hw, whole

        def __len__(self) -> int:
            return 6

        def _read(self, index: int) -> np.ndarray:
            return self._whole[10 * index]

    from arrcoc_sam.segmenters.video.frames import open_clip

    clip = Few(open_clip(BEDROOM))
    tracks = tracker(name).track(clip, [VideoPrompt(2, points_xy=[[210, 350]])])
    assert len(tracks) == 6
    for row in tracks.rows:
        assert decode_rle(row.segmentation).shape == clip.size_hw
        assert math.isfinite(row.object_score)
        assert 0 <= row.predicted_iou <= 1
