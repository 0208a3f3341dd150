"""``train segmenter`` from a file of settings to weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import segment_anything
import torch
from segment_anything.modeling import Sam

from arrcoc_sam.cli.console import err, out, print_json, print_notes, print_table
from arrcoc_sam.cli.orientation import note_turned
from arrcoc_sam.cli.stage_progress import stage_progress
from arrcoc_sam.errors import CheckpointError, InputError, explain
from arrcoc_sam.report import Provenance
from arrcoc_sam.report.json_text import finite, json_document
from arrcoc_sam.report.writing import write_text
from arrcoc_sam.segmenters import load_segmenter
from arrcoc_sam.segmenters.tiny import build_tiny
from arrcoc_sam.segmenters.weights import weights_hash
from arrcoc_sam.training.checkpoint import save_weights
from arrcoc_sam.training.distributed import Devices, open_devices
from arrcoc_sam.training.logs import last_row
from arrcoc_sam.training.segmenter import check_training, train_segmenter
from arrcoc_sam.training.segmenter_config import ModelSettings, SegmenterConfig, default_segmenter_config
from arrcoc_sam.training.validation import BEST, read_best

__all__ = ["TrainSegmenterJob"]

WEIGHTS, RECORD = "weights.safetensors", "run.json"


@dataclass(frozen=True)
class TrainSegmenterJob:
    """Everything that ``train segmenter`` was told; :meth:`run` does it."""

    config: Path | None
    out: Path
    device: str
    workers: int
    checkpoint_every: int
    log_every: int
    tensorboard: bool
    print_config: bool
    as_json: bool
    command: str

    def run(self) -> None:
        """Train, write weights and what they come from, and print the last figures.

        Raises:
            ArrcocSamError: Bad settings or data, or a folder of another run.
        """
        if self.print_config:
            print(default_segmenter_config(), end="")
            return
        config = SegmenterConfig.read(self.config)
        devices = open_devices(self.device)
        check_settings(config, devices, "the default file" if self.config is None else str(self.config))
        with stage_progress() as report:
            if devices.rank > 0:
                devices.wait()  # the main process draws the scenes
            source, facts = config.open_data(self.out / "scenes", report)
            if devices.rank == 0:
                devices.wait()
        if devices.rank == 0:
            note_turned(getattr(source, "turned_in_place", ()), "masks")
        model = build_model(config.model, config.root, config.training.seed)
        facts["model"] = config.model.segmenter
        facts["initial"] = weights_hash(model, frame_hw=(0, 0))
        with _steps(config.training.total_steps) as show:
            trained = train_segmenter(
                config.training,
                source,
                self.out,
                model=model,
                device=self.device,
                checkpoint_every=self.checkpoint_every,
                log_every=self.log_every,
                num_workers=self.workers,
                tensorboard=self.tensorboard,
                origin=facts,
                progress=show,
            )
        if devices.rank == 0:
            self._write(config, facts, trained, last_row(self.out))

    def _write(self, config: SegmenterConfig, facts: dict[str, Any], trained: Sam, figures: dict[str, float]) -> None:
        size = int(trained.image_encoder.img_size)
        best = read_best(self.out)
        record = {
            "segmenter": config.model.segmenter,
            "preset": config.preset,
            "training": asdict(config.training),
            **facts,
            "steps": config.training.total_steps,
            "figures": figures,
            "best": best,
            **Provenance(
                command=self.command,
                segmenter=config.model.segmenter,
                checkpoint_hash=weights_hash(trained, frame_hw=(size, size)),
                device=self.device,
                seed=config.training.seed,
            ).as_json(),
        }
        weights = self.out / WEIGHTS
        save_weights(weights, trained, {"image_size": str(size), "run": json.dumps(finite(record))})
        write_text(self.out / RECORD, json_document(record))
        if self.as_json:
            print_json({"weights": str(weights), **record})
            return
        rows = [(name.replace("_", " "), f"{value:.4g}") for name, value in figures.items()]
        print_table("Last steps", ["figure", "value"], rows, to=out(), right=["value"])
        out().print(f"Wrote {weights}", soft_wrap=True, markup=False)
        if best is not None:
            name, value = best["chosen_by"], best["figures"][best["chosen_by"]]
            words = f"Best on held-out scenes: {self.out / BEST}, step {best['step']}, {name} {value:.4g}"
            out().print(words, soft_wrap=True, markup=False)


def check_settings(config: SegmenterConfig, devices: Devices, file: str) -> None:
    """Refuse what would be refused after scenes were drawn and weights fetched; messages name the file.

    Raises:
        InputError: Sizes, numbers or names of parameters that the model can't take.
        CheckpointError: The file of weights is missing.
    """
    try:
        with torch.device("meta"):  # the architecture alone: nothing is made or read
            check_training(config.training, new_model(config.model), devices)
    except InputError as error:
        raise InputError(f"{file} [training]: {error}") from error
    given = weights_file(config.model, config.root)
    if given is not None and not given.is_file():
        raise CheckpointError(explain(f"{given} does not exist or is no file", "a file of weights"))


def build_model(settings: ModelSettings, root: Path, seed: int) -> Sam:
    """The model with its first weights.

    Raises:
        CheckpointError: The weights are missing, damaged, or of another architecture.
    """
    if settings.weights == "random":
        torch.manual_seed(seed)
        return new_model(settings)
    given = weights_file(settings, root)
    return cast(Sam, load_segmenter(settings.segmenter, checkpoint=given, device="cpu").model)


def new_model(settings: ModelSettings) -> Sam:
    """The model with weights drawn anew."""
    builder = build_tiny if settings.segmenter == "tiny" else getattr(segment_anything, f"build_{settings.segmenter}")
    model: Sam = builder()
    return model


def weights_file(settings: ModelSettings, root: Path) -> Path | None:
    """The file that ``weights`` names; None where it names none."""
    return None if settings.weights in ("published", "random") else root / Path(settings.weights).expanduser()


class _Show(Protocol):
    def __call__(self, step: int, row: dict[str, float]) -> None: ...


@contextmanager
def _steps(total: int) -> Iterator[_Show]:
    """A bar of the steps with loss and throughput, on stderr; none where stderr is no terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("steps"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    print_notes(succeeded=True)  # what was asked for is sound, and may take long
    console = err()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)

        def show(step: int, row: dict[str, float]) -> None:
            words = f"loss {row['loss']:.3f}, IoU {row['final_iou']:.3f}, {row['images_per_second']:.1f} images/s"
            bar.update(task, completed=step, description=words)

        yield show
