"""Clips: frames in any order from folders and files, turned upright, and files that are not what they should be."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from arrcoc_sam.errors import DataError, ImageReadError, MissingExtraError
from arrcoc_sam.segmenters.video.frames import ArrayClip, FolderClip, VideoFileClip, open_clip

SIZE_HW = (48, 64)


def grey(index: int, size_hw: tuple[int, int] = SIZE_HW) -> np.ndarray:
    """A frame that tells its own index, also after compression."""
    return np.full((*size_hw, 3), 20 + 4 * index, dtype=np.uint8)


def write_video(path: Path, frames: list[np.ndarray], *, codec: str = "libx264", gop: int = 12, rate: int = 25) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = frames[0].shape[1], frames[0].shape[0]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = gop
        stream.codec_context.bit_rate = 8_000_000  # greys must come back
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def index_of(image: np.ndarray) -> int:
    return round((float(image.mean()) - 20) / 4)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4", [grey(i) for i in range(40)])


@pytest.mark.parametrize("window", [2, 5, 64])
@pytest.mark.parametrize("order", ["forward", "backward", "there and back", "skipping"])
def test_every_frame_in_any_order(video, window, order):
    clip = VideoFileClip(video, window=window)
    assert len(clip) == 40
    assert clip.size_hw == SIZE_HW
    assert clip.frame_rate == pytest.approx(25)
    assert clip.times_s is not None
    assert clip.times_s[10] == pytest.approx(0.4)
    orders = {
        "forward": list(range(40)),
        "backward": list(range(39, -1, -1)),
        "there and back": [*range(10, 40), *range(9, -1, -1)],
        "skipping": [0, 39, 1, 20, 5, 21, 38, 2],
    }
    for index in orders[order]:
        assert index_of(clip[index]) == index
        assert len(clip._kept) <= window
    clip.close()


def test_backwards_decodes_a_stretch_at_a_time(video, monkeypatch):
    clip = VideoFileClip(video, window=10)
    seeks = []
    original = clip._seek
    monkeypatch.setattr(clip, "_seek", lambda index: (seeks.append(index), original(index)))
    for index in range(39, -1, -1):
        clip[index]
    assert len(seeks) <= 6  # to the end, and 40 / 10 stretches back


@pytest.mark.parametrize(("codec", "suffix"), [("mpeg4", "avi"), ("mjpeg", "mkv"), ("mpeg2video", "ts")])
def test_other_containers(tmp_path, codec, suffix):
    clip = VideoFileClip(write_video(tmp_path / f"clip.{suffix}", [grey(i) for i in range(10)], codec=codec), window=3)
    assert [index_of(clip[i]) for i in (0, 5, 9, 4, 0)] == [0, 5, 9, 4, 0]


def test_a_folder_in_the_order_of_numbers(tmp_path):
    for index in (0, 1, 2, 9, 10, 11):
        Image.fromarray(grey(index)).save(tmp_path / f"frame{index}.png")
    clip = open_clip(tmp_path)
    assert isinstance(clip, FolderClip)
    assert [index_of(image) for image in clip] == [0, 1, 2, 9, 10, 11]
    assert clip.frame_rate is None
    with pytest.raises(IndexError, match="frame 6 of 6"):
        clip[6]
    assert open_clip(clip) is clip


def test_upright_like_single_images(tmp_path):
    turned = Image.fromarray(grey(3, (64, 48)))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "0.jpg", exif=exif)
    Image.fromarray(grey(4)).save(tmp_path / "1.jpg")
    assert FolderClip(tmp_path).size_hw == SIZE_HW


def test_a_size_that_changes(tmp_path):
    Image.fromarray(grey(0)).save(tmp_path / "0.png")
    Image.fromarray(grey(1, (50, 64))).save(tmp_path / "1.png")
    with pytest.raises(DataError, match=r"frame 1 of .*1\.png\) is 64 × 50, the first one 64 × 48"):
        open_clip(tmp_path)
    with pytest.raises(DataError, match="frame 1 of the clip is 64 × 50"):
        ArrayClip([grey(0), grey(1, (50, 64))])


def test_a_size_that_changes_inside_a_file(tmp_path):
    """Two transport streams, one after the other."""
    parts = [
        write_video(tmp_path / f"{side}.ts", [grey(i, (side, 64)) for i in range(6)], codec="mpeg2video", gop=1)
        for side in (48, 80)
    ]
    joined = tmp_path / "joined.ts"
    with av.open(str(joined), "w", format="mpegts") as out:
        stream = out.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number, part in enumerate(parts):
            with av.open(str(part)) as source:
                for packet in source.demux(video=0):
                    if packet.dts is None:
                        continue
                    packet.pts += number * 90_000
                    packet.dts += number * 90_000
                    packet.stream = stream
                    out.mux(packet)
    clip = VideoFileClip(joined)
    assert clip.size_hw == (48, 64)
    with pytest.raises(DataError, match=r"frame \d+ of .*joined\.ts is 64 × 80, the first one 64 × 48"):
        list(clip)


def test_nothing_to_see(tmp_path):
    with pytest.raises(ImageReadError, match="no image in the folder"):
        open_clip(tmp_path)
    with pytest.raises(ImageReadError, match="does not exist or is no file"):
        open_clip(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ImageReadError, match=r"text\.mp4 can't be read"):
        open_clip(tmp_path / "text.mp4")
    with pytest.raises(DataError, match="the clip has no frames"):
        ArrayClip([])


def test_a_file_without_pictures(tmp_path):
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(DataError, match="has no video stream"):
        open_clip(path)


def test_a_truncated_file(video, tmp_path):
    path = tmp_path / "half.ts"
    whole = write_video(tmp_path / "whole.ts", [grey(i) for i in range(40)], codec="mpeg2video")
    path.write_bytes(whole.read_bytes()[:200])
    with pytest.raises((DataError, ImageReadError)):
        list(open_clip(path))


def test_without_pyav(monkeypatch, video):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'arrcoc-sam\[video\]'"):
        open_clip(video)
