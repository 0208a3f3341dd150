"""``video`` from checked inputs to tracks, a picture and a clip on disk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arrcoc_sam.cli.console import noted, out, print_json, print_table
from arrcoc_sam.cli.stage_progress import stage_progress
from arrcoc_sam.cli.staging import staged_folder
from arrcoc_sam.cli.video_inputs import prompts_of_file, prompts_of_options
from arrcoc_sam.cli.video_overlay import check_overlay, write_overlay
from arrcoc_sam.cli.video_plot import plot_scores
from arrcoc_sam.errors import InputError, explain
from arrcoc_sam.report import Provenance
from arrcoc_sam.report.json_text import json_document
from arrcoc_sam.segmenters.video.frames import open_clip
from arrcoc_sam.segmenters.video.prompts import VideoPrompt, check_video_prompts
from arrcoc_sam.segmenters.video.resume import TrackingCheckpoints
from arrcoc_sam.segmenters.video.segmenter import load_video_segmenter
from arrcoc_sam.segmenters.video.tracks import VideoTracks

__all__ = ["UNFINISHED", "VideoJob"]

UNFINISHED = ".unfinished"
"""The folder in the results' own that a long run goes on from."""


@dataclass(frozen=True)
class VideoJob:
    """Everything that ``video`` was told; :meth:`run` does it."""

    clip: Path
    points: Sequence[str]
    box: str | None
    mask: Path | None
    frame: int
    prompts_file: Path | None
    segmenter: str
    device: str
    out: Path
    overlay: bool
    as_json: bool
    command: str

    def run(self) -> None:
        """Track and write.

        Raises:
            ArrcocSamError: Bad input; nothing is written then.
        """
        prompts = prompts_of_options(self.points, self.box, self.mask, self.frame)
        if self.prompts_file is not None:
            prompts += prompts_of_file(self.prompts_file)
        if not prompts:
            raise InputError(
                explain("no prompt", "--point, --box, --mask or --prompts", "add --point x,y on the object to follow")
            )
        if self.overlay:
            check_overlay()
        clip = open_clip(self.clip)
        check_video_prompts(prompts, clip)
        tracker = load_video_segmenter(self.segmenter, device=self.device)
        with staged_folder(self.out) as folder, stage_progress() as progress:
            checkpoints = TrackingCheckpoints(self.out.expanduser() / UNFINISHED)
            tracks = tracker.track(clip, prompts, progress=progress, checkpoints=checkpoints)
            provenance = Provenance(
                command=self.command,
                segmenter=tracker.name,
                checkpoint_hash=tracker.checkpoint_hash,
                device=str(tracker.device),
            ).as_json()
            record = {
                "clip": str(self.clip),
                "size_hw": list(tracks.size_hw),
                "num_frames": tracks.num_frames,
                "frame_rate": tracks.frame_rate,
                "prompts": [_prompt(prompt) for prompt in prompts],
                "objects": [_summary(tracks, name) for name in tracks.object_ids],
                **provenance,
            }
            tracks = VideoTracks(tracks.rows, tracks.size_hw, tracks.num_frames, tracks.frame_rate, provenance)
            tracks.to_parquet(folder / "tracks.parquet")
            plot_scores(tracks).savefig(folder / "scores.png")
            (folder / "video.json").write_text(json_document(record), encoding="utf-8")
            if self.overlay:
                write_overlay(folder / "overlay.mp4", clip, tracks, progress=progress)
        if not self.overlay:
            (self.out.expanduser() / "overlay.mp4").unlink(missing_ok=True)  # of an earlier run, with other masks
        checkpoints.clear()
        clip.close()
        if checkpoints.resumed:
            noted(f"went on where a run had broken off, after {checkpoints.resumed} steps")
        if self.as_json:
            print_json(record)
            return
        _print(record)
        names = ["tracks.parquet", "scores.png", "video.json", *(["overlay.mp4"] if self.overlay else [])]
        for name in names:
            out().print(f"Wrote {self.out / name}", soft_wrap=True, markup=False)


def _prompt(prompt: VideoPrompt) -> dict[str, Any]:
    record: dict[str, Any] = {"frame": prompt.frame, "object": prompt.object_id, "kind": prompt.kind}
    if prompt.mask is None:
        given = prompt.prompts
        record["points_xy"] = None if given.points_xy is None else given.points_xy[0].tolist()
        record["labels"] = None if given.labels is None else given.labels[0].tolist()
        record["box_xyxy"] = None if given.boxes_xyxy is None else given.boxes_xyxy[0].tolist()
    return record


def _summary(tracks: VideoTracks, name: int) -> dict[str, Any]:
    """What happened to one object."""
    rows = tracks.of(name)
    scored = [row.predicted_iou for row in rows if row.visible and not math.isnan(row.predicted_iou)]
    levels = [row.level for row in rows]
    return {
        "object": name,
        "frames": len(rows),
        "visible_frames": sum(row.visible for row in rows),
        "occlusions": [[o.first, o.last] for o in tracks.occlusions() if o.object_id == name],
        "mean_predicted_iou_visible": sum(scored) / len(scored) if scored else None,
        "frames_by_level": {level: levels.count(level) for level in sorted(set(levels))},
    }


def _print(record: dict[str, Any]) -> None:
    columns = ["object", "frames", "visible", "hidden on frames", "predicted IoU", "levels"]
    rows = []
    for entry in record["objects"]:
        mean = entry["mean_predicted_iou_visible"]
        hidden = ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in entry["occlusions"])
        levels = ", ".join(f"{name} {count}" for name, count in entry["frames_by_level"].items())
        rows.append(
            (
                str(entry["object"]),
                str(entry["frames"]),
                str(entry["visible_frames"]),
                hidden or "–",
                "–" if mean is None else f"{mean:.3f}",
                levels,
            )
        )
    print_table("Objects", columns, rows, to=out(), right=["object", "frames", "visible", "predicted IoU"])
