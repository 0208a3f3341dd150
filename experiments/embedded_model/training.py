"""Runs the phases of the training, from weights of this repository's history."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
from phases import FRAME, PHASES, SIDES, Phase
from rich.progress import Progress
from safetensors.torch import save_file
from segment_anything.modeling import Sam

from arrcoc_sam.scenes import draw_bank
from arrcoc_sam.segmenters.tiny import build_tiny, set_image_size
from arrcoc_sam.segmenters.weights import read_weights
from arrcoc_sam.training.segmenter import train_segmenter
from arrcoc_sam.training.sources import MixedSource, SceneSource

HERE = Path(__file__).parent


def train(out: Path, phases: Sequence[int], *, device: str, num_workers: int) -> None:
    """Runs phases in order, each from a mean of weights of those before; one of so many seconds of a GPU only there."""
    out.mkdir(parents=True, exist_ok=True)
    for number in phases:
        phase = PHASES[number]
        initial = mean_of(out, phase.begins)
        if phase.seconds is None:
            model = run_phase(out, number, initial, device=device, num_workers=num_workers)
            if model is None:  # torchrun, one phase at a time: another process writes
                return
            save_model(model, out / f"phase{number}.safetensors")
        else:
            import device_training

            workers = num_workers or device_training.default_workers()
            device_training.train(
                out / f"phase{number}", initial=initial, device=device, workers=workers, seconds=phase.seconds
            )
            shutil.copy(out / f"phase{number}" / "trained.safetensors", out / f"phase{number}.safetensors")
        shutil.copy(out / f"phase{number}" / "log.csv", HERE / f"training_phase{number}.csv")


def run_phase(out: Path, number: int, initial: Path, *, device: str, num_workers: int) -> Sam | None:
    """One phase of so many steps; None in all processes but the first."""
    phase = PHASES[number]
    with Progress() as progress:
        task = progress.add_task(f"phase {number}: steps", total=phase.steps)
        model = train_segmenter(
            phase.training,
            draw_scenes(out, phase, progress),
            out / f"phase{number}",
            initial=initial,
            device=device,
            num_workers=num_workers,
            progress=lambda step, _: progress.update(task, completed=step),
        )
    return model if os.environ.get("RANK", "0") == "0" else None


def draw_scenes(out: Path, phase: Phase, progress: Progress) -> MixedSource:
    """The scenes of a phase, drawn beforehand."""
    sources = []
    for style in phase.shares:
        seeds = phase.seeds[style]
        task = progress.add_task(f"{style} scenes", total=1.0)
        bank = draw_bank(
            out / style,
            first_seed=seeds.start,
            num_scenes=len(seeds),
            size=SIDES.get(style, 256),
            style=style,
            progress=lambda done, total, task=task: progress.update(task, completed=done / total),
        )
        progress.update(task, completed=1.0)
        sources.append(SceneSource(bank))
    return MixedSource(sources, list(phase.shares.values()))


def mean_of(out: Path, shares: Mapping[int | str, float]) -> Path:
    """The mean of weights of phases that were run, and of those of :data:`BEFORE`, as a file beside theirs.

    Weights of runs that went on from one another can be averaged, and are better than those of either.
    """
    total = sum(shares.values())
    parts = [(share / total, weights_of(out, which)) for which, share in shares.items()]
    mean = {
        name: torch.stack([share * part[name].float() for share, part in parts]).sum(dim=0)
        if value.is_floating_point()
        else value
        for name, value in parts[-1][1].items()
    }
    model = build_tiny()
    model.load_state_dict(mean)
    set_image_size(model, FRAME)
    path = out / f"mean_of_{'_'.join(f'{which}x{share:g}' for which, share in shares.items())}.safetensors"
    save_model(model, path)
    return path


def weights_of(out: Path, which: int | str) -> Mapping[str, torch.Tensor]:
    """The weights of a phase that was run, or those that shipped at a commit, grown."""
    if isinstance(which, str):
        return grown(shipped_at(which)).state_dict()
    return read_weights(out / f"phase{which}.safetensors")


def grown(before: Mapping[str, torch.Tensor]) -> Sam:
    """The model with weights of an earlier one; layers that it did not have begin as such that change nothing."""
    torch.manual_seed(0)
    model = build_tiny()
    weights = model.state_dict()
    before = {re.sub(r"encoder\.refine\.body", "encoder.refine.0.body", name): value for name, value in before.items()}
    model.load_state_dict(weights | {name: value for name, value in before.items() if name in weights})
    return model


def shipped_at(commit: str) -> dict[str, torch.Tensor]:
    """The weights that shipped at a commit."""
    return safetensors.torch.load(in_git(f"{commit}:arrcoc_sam/weights/tiny.safetensors"))


def in_git(name: str) -> bytes:
    """A file of another commit."""
    return subprocess.run(["git", "show", name], cwd=HERE, capture_output=True, check=True).stdout


def save_model(
    model: Sam, path: Path, shorten: Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]] = dict
) -> None:
    """Weights and the size of the frame."""
    weights = {name: value.contiguous().cpu() for name, value in shorten(model.state_dict()).items()}
    temporary = path.with_suffix(f".{os.getpid()}.tmp")  # two processes of a phase write the mean that it begins with
    save_file(weights, temporary, metadata={"format": "pt", "image_size": str(model.image_encoder.img_size)})
    temporary.replace(path)
