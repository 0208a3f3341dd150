"""Runs the phases of the training, from weights of this repository's history."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
from phases import BEFORE, PHASES, SIDES, TRAINING_SCENES
from rich.progress import Progress
from safetensors.torch import save_file
from segment_anything.modeling import Sam

from arrcoc_sam.scenes import draw_bank
from arrcoc_sam.segmenters.tiny import build_tiny
from arrcoc_sam.training.segmenter import train_segmenter
from arrcoc_sam.training.sources import MixedSource, SceneSource

HERE = Path(__file__).parent


def train(out: Path, phases: Sequence[int], *, device: str, num_workers: int) -> None:
    """Runs phases in order, each from the weights of the one before."""
    out.mkdir(parents=True, exist_ok=True)
    with Progress() as progress:
        for number in phases:
            phase, initial = PHASES[number], out / f"phase{number - 1}.safetensors"
            if number == min(PHASES) and not initial.is_file():
                save_model(grown(), initial)
            task = progress.add_task(f"phase {number}: steps", total=phase.steps)
            model = train_segmenter(
                phase.training,
                draw_scenes(out, phase.shares, progress),
                out / f"phase{number}",
                initial=initial,
                stop_after=phase.stop_after,
                device=device,
                num_workers=num_workers,
                progress=lambda step, _, task=task: progress.update(task, completed=step),
            )
            if os.environ.get("RANK", "0") != "0":  # torchrun, one phase at a time: another process writes
                return
            save_model(model, out / f"phase{number}.safetensors")
            (HERE / f"training_phase{number}.csv").write_bytes((out / f"phase{number}" / "log.csv").read_bytes())


def draw_scenes(out: Path, shares: Mapping[str, float], progress: Progress) -> MixedSource:
    """The scenes of a phase, drawn beforehand."""
    sources = []
    for style in shares:
        seeds = TRAINING_SCENES[style]
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
    return MixedSource(sources, list(shares.values()))


def averaged(out: Path, phases: Sequence[int]) -> Path:
    """The mean of the weights of phases that were run, as a file beside theirs: better than those of either."""
    files = [safetensors.torch.load_file(out / f"phase{number}.safetensors") for number in phases]
    mean = {
        name: sum(file[name] for file in files) / len(files) if value.is_floating_point() else value
        for name, value in files[-1].items()
    }
    model = build_tiny()
    model.load_state_dict(mean)
    path = out / f"mean_of_{'_'.join(map(str, phases))}.safetensors"
    save_model(model, path)
    return path


def grown() -> Sam:
    """The model with the weights of :data:`BEFORE`; layers that it did not have begin as such that change nothing.

    Its two residual blocks at stride 32 are gone: there was no room for them beside attention.
    """
    torch.manual_seed(0)
    model = build_tiny()
    weights = model.state_dict()
    before = safetensors.torch.load(in_git(f"{BEFORE}:arrcoc_sam/weights/tiny.safetensors"))
    model.load_state_dict(weights | {name: value for name, value in before.items() if name in weights})
    return model


def in_git(name: str) -> bytes:
    """A file of another commit."""
    return subprocess.run(["git", "show", name], cwd=HERE, capture_output=True, check=True).stdout


def save_model(model: Sam, path: Path, shorten: Callable[[torch.Tensor], torch.Tensor] = torch.clone) -> None:
    """Weights and the size of the frame."""
    weights = {name: shorten(value).contiguous() for name, value in model.state_dict().items()}
    temporary = path.with_suffix(".tmp")
    save_file(weights, temporary, metadata={"format": "pt", "image_size": str(model.image_encoder.img_size)})
    temporary.replace(path)
