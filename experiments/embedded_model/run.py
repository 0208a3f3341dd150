"""Trains, judges and describes the embedded model; see README.md.

uv run python experiments/embedded_model/run.py all        # everything, in order; the shipped weights are replaced
uv run python experiments/embedded_model/run.py evaluate   # only the figures of the shipped weights
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from matplotlib.figure import Figure
from rich.progress import Progress
from safetensors.torch import save_file
from scoring import FRAME, SCENES, fit_scoring
from segment_anything.modeling import Sam

import arrcoc_sam as aa
from arrcoc_sam.masks import pairwise_iou
from arrcoc_sam.masks.rle import decode_rle
from arrcoc_sam.quality import AnnotatedImage, click_image, summarize_clicks
from arrcoc_sam.report.panels import mark_point, outline_masks, show_image
from arrcoc_sam.scenes import LEVEL_NAMES, TEST_V1, TEST_V2, SceneSplit, draw_bank, generate_scene
from arrcoc_sam.segmenters.checkpoints import load_weights
from arrcoc_sam.segmenters.tiny import build_tiny, set_image_size, tiny_weights_path
from arrcoc_sam.training.batches import Augmentation
from arrcoc_sam.training.interactive import ClickRecipe
from arrcoc_sam.training.segmenter import SegmenterTraining, Stage, train_segmenter
from arrcoc_sam.training.settings import Validation
from arrcoc_sam.training.sources import MixedSource, SceneSource

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CLICKS = (1, 3, 8)
SPLITS = (TEST_V1, TEST_V2)


@dataclass(frozen=True)
class Phase:
    """A training run that goes on from the weights of the one before."""

    training: SegmenterTraining
    stop_after: int | None = None

    @property
    def steps(self) -> int:
        """Steps that are taken."""
        return self.training.total_steps if self.stop_after is None else self.stop_after


BEFORE = "1a0e12c"
"""The commit whose weights the phases begin with; its run.py made them from nothing, in the phases 0 to 3."""

PLAIN, RICH, RICH_SHARE = range(16_000), range(1_000_000, 1_008_000), 0.3
"""Seeds of the scenes of training, and the share of images that are rich."""

MEANT = ClickRecipe(iou_weight=5.0, expected_iou=True, supervise_meant=True)
"""Everything that a click may mean is learned, and the head learns the expected IoU."""

HEAD = SegmenterTraining(
    stages=(Stage(256, 350, num_targets=8),),
    recipe=ClickRecipe(expected_iou=True, given_mask_probability=0.2),
    augmentation=Augmentation(crop_probability=0.25),
    trainable=("mask_decoder.mask_scoring.*", "mask_decoder.iou_prediction_head.*"),
    learning_rate=2e-3,
    warmup_steps=30,
    decay_share=1.0,
    ema_decay=0.98,
    freeze_batch_norm=True,
)
"""The IoU head and what corrects it, once the masks are there."""

PHASES = {
    # everything through the decoder, half of the loss dense; broken off, since the dense loss fell too slowly
    4: Phase(
        SegmenterTraining(
            stages=(Stage(160, 2600), Stage(192, 2600)),
            recipe=replace(MEANT, grouping_weight=0.5),
            learning_rate=6e-4,
            warmup_steps=200,
            decay_share=0.7,
            floor=0.2,
            ema_decay=0.998,
            seed=10,
        ),
        stop_after=2500,
    ),
    # mostly dense: twelve targets an image, two of them through the decoder as well
    5: Phase(
        SegmenterTraining(
            stages=(Stage(160, 2400, num_targets=12),),
            recipe=replace(MEANT, grouping_weight=1.5, decoded_targets=2),
            learning_rate=8e-4,
            warmup_steps=100,
            decay_share=0.5,
            floor=0.4,
            ema_decay=0.995,
            seed=20,
        ),
    ),
    # more of the decoder, more clicks
    6: Phase(
        SegmenterTraining(
            stages=(Stage(192, 1600, num_targets=8),),
            recipe=replace(MEANT, num_rounds=4, grouping_weight=1.0, decoded_targets=3),
            learning_rate=5e-4,
            warmup_steps=50,
            decay_share=1.0,
            ema_decay=0.995,
            seed=21,
            validation=Validation(every=800, scenes=40, rich_share=0.3, clicks=CLICKS),
        ),
    ),
    # the IoU head and what corrects it
    7: Phase(
        SegmenterTraining(
            stages=(Stage(192, 350, num_targets=8),),
            recipe=ClickRecipe(expected_iou=True),
            augmentation=Augmentation(crop_probability=0.25),
            trainable=("mask_decoder.mask_scoring.*", "mask_decoder.iou_prediction_head.*"),
            learning_rate=2e-3,
            warmup_steps=30,
            decay_share=1.0,
            ema_decay=0.98,
            freeze_batch_norm=True,
            seed=22,
        ),
    ),
    # as phase 5, at a higher resolution
    8: Phase(
        SegmenterTraining(
            stages=(Stage(224, 2400, num_targets=12),),
            recipe=replace(MEANT, grouping_weight=1.5, decoded_targets=2),
            learning_rate=7e-4,
            warmup_steps=100,
            decay_share=0.6,
            floor=0.35,
            ema_decay=0.995,
            seed=30,
        ),
    ),
    # as phase 6, and a fifth of the decoder's prompts are masks of somebody else's making
    9: Phase(
        SegmenterTraining(
            stages=(Stage(224, 2500, num_targets=8),),
            recipe=replace(MEANT, num_rounds=4, given_mask_probability=0.2, grouping_weight=1.0, decoded_targets=3),
            learning_rate=5e-4,
            warmup_steps=50,
            decay_share=1.0,
            ema_decay=0.995,
            seed=31,
        ),
    ),
    # as phase 7, at the size of the frame
    10: Phase(replace(HEAD, seed=32)),
    # both at once and two rounds alone, the rate never high again; crops down to .45 of a side show objects larger;
    # broken off, since the loss of a rate that hardly falls does not fall either
    11: Phase(
        SegmenterTraining(
            stages=(Stage(224, 3200, num_targets=12),),
            recipe=replace(MEANT, num_rounds=2, given_mask_probability=0.1, grouping_weight=1.5, decoded_targets=3),
            augmentation=Augmentation(smallest_crop=0.45),
            learning_rate=4.5e-4,
            warmup_steps=100,
            decay_share=1.0,
            floor=0.4,
            ema_decay=0.998,
            seed=40,
        ),
        stop_after=1750,
    ),
    # from there to nothing, a round more
    12: Phase(
        SegmenterTraining(
            stages=(Stage(224, 2300, num_targets=8),),
            recipe=replace(MEANT, given_mask_probability=0.2, grouping_weight=1.0, decoded_targets=3),
            augmentation=Augmentation(smallest_crop=0.45),
            learning_rate=3e-4,
            warmup_steps=50,
            decay_share=1.0,
            ema_decay=0.998,
            seed=41,
        ),
    ),
    # as phase 10
    13: Phase(replace(HEAD, seed=42)),
    # the encoder above all: twelve targets dense, one of them through the decoder, once; two processes
    14: Phase(
        SegmenterTraining(
            stages=(Stage(224, 5000, num_targets=12),),
            recipe=replace(MEANT, num_rounds=1, grouping_weight=1.5, decoded_targets=1),
            augmentation=Augmentation(smallest_crop=0.45),
            learning_rate=5e-4,
            warmup_steps=100,
            decay_share=1.0,
            floor=0.3,
            ema_decay=0.998,
            freeze_batch_norm=True,
            seed=50,
        ),
    ),
    # as phase 12, from a high rate to nothing; two processes
    15: Phase(
        SegmenterTraining(
            stages=(Stage(224, 1700, num_targets=8),),
            recipe=replace(MEANT, given_mask_probability=0.2, grouping_weight=1.0, decoded_targets=3),
            augmentation=Augmentation(smallest_crop=0.45),
            learning_rate=3e-4,
            warmup_steps=50,
            decay_share=1.0,
            ema_decay=0.995,
            freeze_batch_norm=True,
            seed=51,
        ),
    ),
    # as phase 14, by Muon, and a fifth of the decoder's prompts are foreign masks; two processes
    16: Phase(
        SegmenterTraining(
            stages=(Stage(224, 5200, num_targets=12),),
            recipe=replace(MEANT, num_rounds=1, given_mask_probability=0.2, grouping_weight=1.5, decoded_targets=1),
            augmentation=Augmentation(smallest_crop=0.45),
            optimizer="muon",
            learning_rate=5e-4,
            warmup_steps=50,
            decay_share=1.0,
            floor=0.3,
            ema_decay=0.998,
            freeze_batch_norm=True,
            seed=60,
        ),
    ),
    # as phase 15, by Muon; two processes
    17: Phase(
        SegmenterTraining(
            stages=(Stage(224, 1600, num_targets=8),),
            recipe=replace(MEANT, given_mask_probability=0.2, grouping_weight=1.0, decoded_targets=3),
            augmentation=Augmentation(smallest_crop=0.45),
            optimizer="muon",
            learning_rate=3e-4,
            warmup_steps=50,
            decay_share=1.0,
            ema_decay=0.995,
            freeze_batch_norm=True,
            seed=61,
        ),
    ),
    # as phase 16, at a higher rate; two processes
    18: Phase(
        SegmenterTraining(
            stages=(Stage(224, 5400, num_targets=12),),
            recipe=replace(MEANT, num_rounds=1, given_mask_probability=0.2, grouping_weight=1.5, decoded_targets=1),
            augmentation=Augmentation(smallest_crop=0.45),
            optimizer="muon",
            learning_rate=8e-4,
            warmup_steps=50,
            decay_share=1.0,
            floor=0.2,
            ema_decay=0.998,
            freeze_batch_norm=True,
            seed=70,
        ),
    ),
    # as phase 17, nearer to the size of the frame; two processes
    19: Phase(
        SegmenterTraining(
            stages=(Stage(256, 1300, num_targets=8),),
            recipe=replace(MEANT, given_mask_probability=0.2, grouping_weight=1.0, decoded_targets=3),
            augmentation=Augmentation(smallest_crop=0.45),
            optimizer="muon",
            learning_rate=3e-4,
            warmup_steps=50,
            decay_share=1.0,
            ema_decay=0.995,
            freeze_batch_norm=True,
            seed=71,
        ),
    ),
}


def train(out: Path, phases: Sequence[int], *, device: str, num_workers: int) -> None:
    """Runs phases in order, each from the weights of the one before."""
    out.mkdir(parents=True, exist_ok=True)
    with Progress() as progress:
        scenes = draw_scenes(out, progress)
        for number in phases:
            phase, initial = PHASES[number], out / f"phase{number - 1}.safetensors"
            if number == min(PHASES) and not initial.is_file():
                save_model(grown(), initial)
            task = progress.add_task(f"phase {number}: steps", total=phase.steps)
            model = train_segmenter(
                phase.training,
                scenes,
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


def draw_scenes(out: Path, progress: Progress) -> MixedSource:
    """The scenes of training, drawn beforehand."""
    sources = []
    for style, seeds in (("plain", PLAIN), ("rich", RICH)):
        task = progress.add_task(f"{style} scenes", total=1.0)
        bank = draw_bank(
            out / style,
            first_seed=seeds.start,
            num_scenes=len(seeds),
            style=style,
            progress=lambda done, total, task=task: progress.update(task, completed=done / total),
        )
        progress.update(task, completed=1.0)
        sources.append(SceneSource(bank))
    return MixedSource(sources, [1 - RICH_SHARE, RICH_SHARE])


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
    return subprocess.run(["git", "show", name], cwd=ROOT, capture_output=True, check=True).stdout


def ship(out: Path) -> None:
    """Corrects the predicted IoU of the last phase's weights and puts them into the package, in half precision."""
    trained = out / f"phase{max(PHASES)}.safetensors"
    model: Any = build_tiny()
    load_weights(model, trained, name="the embedded model")
    set_image_size(model, FRAME)
    with Progress() as progress, ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), start_worker) as pool:
        task = progress.add_task("scenes for the predicted IoU", total=1.0)
        network = fit_scoring(trained, pool, lambda done, total: progress.update(task, completed=done / total))
    model.mask_decoder.mask_scoring["several"].load_state_dict(network.state_dict())
    save_model(model, Path(tiny_weights_path()), shorten=half)


def save_model(model: Sam, path: Path, shorten: Callable[[torch.Tensor], torch.Tensor] = torch.clone) -> None:
    """Weights and the size of the frame."""
    weights = {name: shorten(value).contiguous() for name, value in model.state_dict().items()}
    temporary = path.with_suffix(".tmp")
    save_file(weights, temporary, metadata={"format": "pt", "image_size": str(model.image_encoder.img_size)})
    temporary.replace(path)


def half(value: torch.Tensor) -> torch.Tensor:
    """Matrices in half precision for storage; vectors and the small positional matrix, a phase, stay exact."""
    return value.half() if value.is_floating_point() and value.ndim > 1 and value.numel() > 1024 else value


def evaluate() -> dict[str, Any]:
    """Every figure of the shipped weights: test splits v1 and v2, the real pack, time a prompt."""
    segmenter = aa.load_segmenter("tiny", device="cpu")
    seconds, summaries = rounded(timing(segmenter)), {}
    with Progress() as progress, ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), start_worker) as pool:
        for split in SPLITS:
            found = pool.map(partial(click_scene, split), range(len(split)), chunksize=5)
            frames = list(progress.track(found, total=len(split), description=split.name))
            summaries[split.name] = rounded(summarize_clicks(pd.concat(frames, ignore_index=True)))
    results = {
        "splits": {split.name: {"sha256": split.sha256, "clicks_seed": 0} for split in SPLITS},
        **summaries,
        "seconds": seconds,
        "parameters": sum(p.numel() for p in segmenter.model.parameters()),
        "bytes": Path(tiny_weights_path()).stat().st_size,
        "checkpoint_hash": segmenter.checkpoint_hash,
        "image_size": segmenter.image_size,
        "scenes": {"plain": [PLAIN.start, PLAIN.stop], "rich": [RICH.start, RICH.stop], "rich_share": RICH_SHARE},
        "scoring": {style: [seeds.start, seeds.stop] for style, seeds in SCENES.items()},
        "before": BEFORE,
        "phases": {str(number): asdict(phase) for number, phase in PHASES.items()},
        "versions": {"arrcoc_sam": aa.__version__, "torch": torch.__version__, "numpy": np.__version__},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU",
        "commit": commit(),
    }
    pack = data_folder() / "nested-masks"
    if pack.is_dir():
        results["nested-masks"] = real_pack(segmenter, pack)
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    return results


def start_worker() -> None:
    """One thread a process: several small models side by side are faster than one on all cores."""
    torch.set_num_threads(1)


@cache
def worker_segmenter() -> aa.Segmenter:
    return aa.load_segmenter("tiny", device="cpu")


def click_scene(split: SceneSplit, index: int) -> pd.DataFrame:
    """The protocol's rows of one scene of a test split."""
    scene = split[index]
    image = AnnotatedImage(f"{split.name}-{index}", scene.image, scene.masks, scene.levels)
    return click_image(worker_segmenter(), image, clicks=CLICKS, seed=0)


def real_pack(segmenter: aa.Segmenter, pack: Path) -> dict[str, Any]:
    """Oracle and automatic IoU of one click on human triples, by source and level, beside a disc of the true area."""
    manifest = json.loads((pack / "manifest.json").read_text())
    images = {image["id"]: image for image in manifest["images"]}
    masks = {mask["id"]: mask for mask in manifest["masks"]}
    rows = []
    for triple in (t for t in manifest["triples"] if t["levels"] == 3):
        image = images[triple["image_id"]]
        truth = torch.stack([decode_rle(masks[triple["masks"][level]]["segmentation"]) for level in LEVEL_NAMES])
        embedding = segmenter.encode(pack / image["file"])
        prompts = aa.Prompts(points_xy=[[triple["point"]]], labels=[[1]])
        candidates = segmenter.decode(embedding, prompts)
        iou = pairwise_iou(candidates.masks(), truth[None])[0].nan_to_num(0.0)
        chosen = int(candidates.predicted_iou[0].argmax())
        for index, level in enumerate(LEVEL_NAMES):
            rows.append(
                {
                    "source": image["source"],
                    "level": level,
                    "oracle": float(iou[:, index].max()),
                    "automatic": float(iou[chosen, index]),
                    "disc": disc_iou(truth[index].numpy(), triple["point"]),
                }
            )
    table = pd.DataFrame(rows)
    means = table.groupby(["source", "level"])[["oracle", "automatic", "disc"]].mean().round(4)
    return {
        source: {"triples": int((table["source"] == source).sum() // 3)}
        | {level: means.loc[(source, level)].to_dict() for level in LEVEL_NAMES}
        for source in sorted(table["source"].unique())
    }


def disc_iou(mask: np.ndarray, point: list[float]) -> float:
    """IoU of a mask with a disc of its area around a point: what knowing the size alone gives."""
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]]
    disc = (x - point[0]) ** 2 + (y - point[1]) ** 2 <= mask.sum() / np.pi
    return float((disc & mask).sum() / (disc | mask).sum())


def timing(segmenter: aa.Segmenter) -> dict[str, float]:
    """Median seconds of one encode and of one click with masks at the original size, all cores."""
    from time import perf_counter

    image = generate_scene(0).image
    encodes, clicks = [], []
    for _ in range(15):
        began = perf_counter()
        embedding = segmenter.encode(image)
        encoded = perf_counter()
        with torch.no_grad():
            segmenter.decode(embedding, aa.Prompts(points_xy=[[[100, 100]]], labels=[[1]])).masks()
        encodes.append(encoded - began)
        clicks.append(perf_counter() - encoded)
    return {"encode": float(np.median(encodes)), "click": float(np.median(clicks))}


def figures() -> None:
    """The training curve, and what the model answers on scenes it never saw."""
    (HERE / "figures").mkdir(exist_ok=True)
    logs = [pd.read_csv(HERE / f"training_phase{number}.csv") for number in range(1 + max(PHASES))]
    starts = np.cumsum([0, *(log["step"].iloc[-1] for log in logs[:-1])])
    log = pd.concat([part.assign(step=part["step"] + start) for part, start in zip(logs, starts, strict=True)])
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, names in ((left, ("mask_loss", "iou_loss")), (right, ("oracle_iou", "final_iou"))):
        for name, color in zip(names, ("#00204d", "#c8a300"), strict=True):
            axes.plot(log["step"], log[name], color=color, alpha=0.15, linewidth=0.8)
            axes.plot(log["step"], log[name].rolling(15, min_periods=1).mean(), color=color, label=LABELS[name])
        for boundary in starts[1:]:
            axes.axvline(boundary, color="0.6", linestyle=":", linewidth=1)
        axes.set_xlabel("step (16 images); dotted: a new phase")
        axes.legend(frameon=False)
    left.set_yscale("log")
    left.set_ylabel("training loss")
    right.set_ylabel("IoU on training batches")
    right.set_ylim(0, 1)
    figure.savefig(HERE / "figures" / "training.png", dpi=110)
    samples().savefig(HERE / "figures" / "samples.png", dpi=80)


LABELS = {
    "mask_loss": "20 focal + Dice",
    "iou_loss": "IoU head, squared error",
    "oracle_iou": "first prompt, best of three",
    "final_iou": "last prompt, token 0",
}


def samples(count: int = 6) -> Figure:
    """One click on the first scenes of the test split: the annotated chain under it, and the model's three masks."""
    segmenter = aa.load_segmenter("tiny", device="cpu")
    figure = Figure(figsize=(2.4 * count, 5.2), layout="constrained")
    axes = figure.subplots(2, count)
    for column, (scene, node) in zip(range(count), subpart_scenes(), strict=False):
        x, y = scene.sample_point(node, np.random.default_rng(0))
        candidates = segmenter.decode(segmenter.encode(scene.image), aa.Prompts(points_xy=[[[x, y]]], labels=[[1]]))
        truth = scene.masks[[scene.parents[scene.parents[node]], scene.parents[node], node]]
        hierarchy = candidates.hierarchy()
        best = pairwise_iou(candidates.masks(), torch.from_numpy(truth)[None])[0].amax(dim=0)
        for row, shown in enumerate((truth, hierarchy.masks[0].numpy())):
            panel = axes[row, column]
            show_image(panel, scene.image)
            outline_masks(panel, shown)
            mark_point(panel, (x, y))
        axes[1, column].set_title(" · ".join(f"{value:.2f}" for value in best), fontsize=9)
    axes[0, 0].set_title("annotated", fontsize=9, loc="left")
    figure.suptitle("One click: annotated (above), the embedded model's three masks (below) with the best IoU by level")
    return figure


def subpart_scenes() -> Iterator[tuple[Any, int]]:
    """Scenes of the test split with a subpart, and its node."""
    for scene in TEST_V1:
        nodes = np.flatnonzero(scene.levels == 2)
        if len(nodes):
            yield scene, int(nodes[np.argmax(scene.masks[nodes].sum(axis=(1, 2)))])


def card() -> None:
    """Writes the model card beside the weights from results.json."""
    from card import write_card

    write_card(json.loads((HERE / "results.json").read_text()), Path(tiny_weights_path()).with_name("README.md"))


def data_folder() -> Path:
    """The evaluation data that lies beside a checkout, or where ARRCOC_SAM_DATA says."""
    return Path(os.environ.get("ARRCOC_SAM_DATA", ROOT.parent / "shared" / "data"))


def rounded(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in figures.items()}


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["all", "train", "ship", "evaluate", "figures", "card"])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "embedded_model", help="scenes and checkpoints")
    parser.add_argument("--phase", type=int, choices=PHASES, help="only this phase of the training")
    parser.add_argument("--device", default="cpu", help="of the training; what is shipped was trained on a cpu")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw batches; none on two cores")
    arguments = parser.parse_args()
    if arguments.what in ("all", "train"):
        phases = list(PHASES) if arguments.phase is None else [arguments.phase]
        train(arguments.out, phases, device=arguments.device, num_workers=arguments.workers)
    if arguments.what in ("all", "ship"):
        ship(arguments.out)
    if arguments.what in ("all", "evaluate"):
        print(json.dumps(evaluate(), indent=1))
    if arguments.what in ("all", "figures"):
        figures()
    if arguments.what in ("all", "card"):
        card()


if __name__ == "__main__":
    main()
