"""Does attention that is taught SAM's hierarchy sit at whole, part and subpart, more than with simpler supervision?

``prepare`` draws scenes and builds the caches, ``train`` runs what is missing of arms × seeds (several processes may
share the work by ``--seeds``), ``collect`` writes results.json, the figures and the tables of the README.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from arrcoc_sam.datasets import CocoDataset
from arrcoc_sam.granularity.metrics import shell_contrast
from arrcoc_sam.hierarchy.levels import LEVELS
from arrcoc_sam.image_files import find_images
from arrcoc_sam.masks import area_average
from arrcoc_sam.report.provenance import installed_versions
from arrcoc_sam.report.writing import replacing, write_text
from arrcoc_sam.segmenters import load_segmenter
from arrcoc_sam.training.attention.evaluation import evaluate_levels, measurable_samples
from arrcoc_sam.training.attention.feed import HeldSamples
from arrcoc_sam.training.attention.settings import AttentionTraining
from arrcoc_sam.training.attention.trainer import build_attention, train_attention
from arrcoc_sam.training.cache.build import build_cache
from arrcoc_sam.training.cache.dataset import HierarchyCache, HierarchyDataset
from arrcoc_sam.training.cache.sources import TruthLevels
from arrcoc_sam.training.distributed import SingleDevice
from arrcoc_sam.training.samples import AttentionSample
from arrcoc_sam.training.samples_scenes import prepare_scenes
from arrcoc_sam.training.samples_supervision import area_quantile_bounds, supervision

HERE = Path(__file__).parent
SIZE, CLICKS = 192, 4
TRAIN = range(7_100_000, 7_100_200)  # the segmenter never saw them
VALIDATION = range(7_300_000, 7_300_100)  # steps and learning rate were chosen on them
TEST = range(9_800_000, 9_800_150)  # looked at once, by this third version
NUM_TEST, NUM_REAL = 48, 32
SEEDS = 5


@dataclass(frozen=True)
class Arm:
    """One way to teach.

    Attributes:
        words: What it is, for tables.
        supervision: Which mask teaches which level.
        weighted: By confidence.
        filtered: Without the third of the masks that the quality estimator scores lowest.
        truth: Exact masks instead of the segmenter's.
        trained: Or left at random weights.
    """

    words: str
    supervision: Any = "hierarchy"
    weighted: bool = True
    filtered: bool = False
    truth: bool = False
    trained: bool = True


ARMS = {
    "hierarchy": Arm("SAM's hierarchy, weighted by confidence"),
    "flat": Arm("one mask, the best by score, at all levels", "flat"),
    "token_order": Arm("three masks in the decoder's token order", "token_order"),
    "permuted": Arm("three masks, order drawn per picture", "permuted"),
    "area_quantiles": Arm("masks by terciles of area", "area_quantiles"),
    "unweighted": Arm("SAM's hierarchy, every level weighs 1", weighted=False),
    "filtered": Arm("SAM's hierarchy, lowest third by quality left out", filtered=True),
    "truth": Arm("exact masks, meant as the ceiling", truth=True),
    "untrained": Arm("random weights (floor)", trained=False),
}

SETTINGS = AttentionTraining(
    backbone="segmenter:tiny",
    frozen=True,
    batch_norm="frozen",
    image_size=192,
    width=16,
    steps=960,
    num_images=8,
    num_queries=2,
    learning_rate=4e-3,
    ema_decay=0.97,
)
LOG_EVERY = 80


def options(settings: AttentionTraining) -> dict[str, Any]:
    return {"target_hw": (settings.target_size,) * 2, "image_size": settings.image_size}


def data_folder() -> Path | None:
    """The folder with ``nested-masks``, or None."""
    for place in (os.environ.get("ARRCOC_SAM_DATA"), HERE.parents[2] / "shared" / "data"):
        if place is not None and (Path(place) / "nested-masks" / "manifest.json").is_file():
            return Path(place)
    return None


def prepare(work: Path) -> None:
    """All caches; what is there already is kept."""
    segmenter = load_segmenter("tiny", device="cpu")
    options = {"size": SIZE, "clicks": CLICKS}
    prepare_scenes(work / "train", TRAIN, segmenter=segmenter, quality=True, **options)
    for place, seeds in {"train": TRAIN, "validation": VALIDATION, "test": TEST}.items():
        prepare_scenes(work / place, seeds, **options)
    data = data_folder()
    if data is not None:
        sys.path.insert(0, str(HERE.parent / "human_hierarchy"))
        from pack import convert_pack

        coco = CocoDataset.read(convert_pack(data / "nested-masks", work / "nested.json"))
        images = find_images([data / "nested-masks" / "images"], recursive=True)
        build_cache(TruthLevels(coco), images, work / "real")


def prepared(work: Path) -> dict[str, HierarchyCache]:
    """The caches that :func:`prepare` left."""
    places = {
        "levels": work / "train" / "levels",
        "truth": work / "train" / "truth",
        "validation": work / "validation" / "truth",
        "test": work / "test" / "truth",
        "real": work / "real",
    }
    return {name: HierarchyCache.open(place) for name, place in places.items() if name != "real" or place.is_dir()}


def judged_on(caches: dict[str, HierarchyCache], *, test: bool = True) -> dict[str, list[AttentionSample]]:
    """One measurable sample a picture: generated test scenes, and photographs with masks drawn by people.

    While choices are made (``test`` False), validation scenes alone.
    """
    counts = {"scenes": ("test", NUM_TEST), "photographs": ("real", NUM_REAL)}
    if not test:
        counts = {"scenes": ("validation", 48)}
    return {
        name: measurable_samples(HierarchyDataset(caches[cache], **options(SETTINGS)), SETTINGS.levels[-1], most=most)
        for name, (cache, most) in counts.items()
        if cache in caches
    }


def samples_of(arm: Arm, caches: dict[str, HierarchyCache], seed: int) -> HeldSamples:
    """The training samples of an arm."""
    cache = caches["truth" if arm.truth else "levels"]
    plain = HierarchyDataset(cache, **options(SETTINGS))
    bounds = area_quantile_bounds(plain.area_shares()) if arm.supervision == "area_quantiles" else None
    least = None
    if arm.filtered:
        least = float(np.quantile(np.array(plain.rows["quality"].to_pylist()), 1 / 3))
    teach = supervision(arm.supervision, weighted=arm.weighted, area_bounds=bounds, seed=seed)
    dataset = HierarchyDataset(cache, teach=teach, min_quality=least, **options(SETTINGS))
    return HeldSamples([dataset[index] for index in range(len(dataset))])


def train(work: Path, names: list[str], seeds: list[int]) -> None:
    torch.set_num_threads(1)
    caches = prepared(work)
    judges = judged_on(caches)
    held: dict[tuple[str, int], HeldSamples] = {}
    for seed in seeds:
        for name in names:
            target = work / "runs" / f"{name}-{seed}.json"
            if not target.is_file():
                write_text(target, json.dumps(one_run(name, seed, work, caches, judges, held)))


def one_run(
    name: str,
    seed: int,
    work: Path,
    caches: dict[str, HierarchyCache],
    judges: dict[str, list[AttentionSample]],
    held: dict[tuple[str, int], HeldSamples],
) -> dict[str, Any]:
    """Train and judge one arm with one seed; ``held`` keeps training samples for the next seed."""
    arm, began, cpu = ARMS[name], time.monotonic(), time.process_time()
    settings = replace(SETTINGS, seed=seed, supervision=arm.supervision, weighted=arm.weighted)
    losses: np.ndarray = np.empty(0)
    if arm.trained:
        key = (name, seed if arm.supervision == "permuted" else 0)
        if key not in held:
            held[key] = samples_of(arm, caches, seed)
        folder = work / "runs" / f"{name}-{seed}"
        model, _ = train_attention(
            settings,
            held[key],
            folder,
            devices=SingleDevice("cpu"),
            log_every=1,
            checkpoint_every=settings.steps,
        )
        losses = pd.read_csv(folder / "log.csv")["loss"].to_numpy()  # whole after a kill, too
    else:
        torch.manual_seed(seed)
        model = build_attention(settings)
    record: dict[str, Any] = {"arm": name, "seed": seed}
    record["loss"] = losses.reshape(-1, LOG_EVERY).mean(1).tolist()  # means of so many steps
    for place, validation in judges.items():
        report = evaluate_levels(model, validation, seed=seed)
        record[place] = {
            "contrast": report.contrast.tolist(),
            "z": report.claims.z.diagonal().tolist(),
            "claimed": [str(level) for level in report.claims.level],
            "area": report.area.tolist(),
        }
        figures = {k: round(v, 3) for k, v in report.figures().items() if "contrast" in k}
        print(name, seed, place, figures, flush=True)
    return record | {"seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - cpu}


def choose(work: Path, names: list[str], steps: list[int], rate: float) -> None:
    """Validation scenes and one seed: how long to train, how fast."""
    torch.set_num_threads(1)
    caches = prepared(work)
    judge = judged_on(caches, test=False)["scenes"]
    for name in names:
        samples = samples_of(ARMS[name], caches, 0)
        for number in steps:
            settings = replace(
                SETTINGS, steps=number, learning_rate=rate, supervision=ARMS[name].supervision, seed=1_000
            )
            cpu, losses = time.process_time(), []
            _, report = train_attention(
                settings,
                samples,
                work / "choose" / f"{name}-{number}-{rate:g}",
                validation=judge,
                devices=SingleDevice("cpu"),
                log_every=1,
                progress=lambda _, row, losses=losses: losses.append(row["loss"]),
            )
            figures = {} if report is None else {k: round(v, 3) for k, v in report.figures().items() if "contrast" in k}
            curve = [round(float(part.mean()), 3) for part in np.array_split(np.array(losses), 6)]
            print(name, number, rate, figures, curve, f"{time.process_time() - cpu:.0f} s", flush=True)


def matched(records: list[dict[str, Any]], place: str) -> np.ndarray:
    """(seeds, images, 3) contrast of each head at its own level."""
    return np.array([np.array(r[place]["contrast"], dtype=float)[:, range(3), range(3)] for r in records])


def selective(records: list[dict[str, Any]], place: str) -> np.ndarray:
    """(seeds, images, 3): contrast of each head at its own level, less its mean at the others."""
    contrast = np.array([np.array(r[place]["contrast"], dtype=float) for r in records])
    own = contrast[:, :, range(3), range(3)]
    return own - (np.nansum(contrast, axis=3) - np.nan_to_num(own)) / np.maximum(np.isfinite(contrast).sum(3) - 1, 1)


MEASURES = {"contrast": matched, "selectivity": selective}


def bootstrap(values: np.ndarray, draws: int = 10_000, seed: int = 0) -> tuple[list[float], list[list[float]]]:
    """Means and 95 % intervals of each level and of their mean, seeds and pictures resampled together.

    Args:
        values: (seeds, images, 3), NaN where a picture has no such level.
    """
    rng = np.random.default_rng(seed)
    num_seeds, num_images, _ = values.shape
    present = np.isfinite(values[0])
    filled = np.where(np.isfinite(values), values, 0.0)
    seeds = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), draws) / num_seeds
    images = rng.multinomial(num_images, np.full(num_images, 1 / num_images), draws)

    def means(seed_weights: np.ndarray, image_weights: np.ndarray) -> np.ndarray:
        of_images = np.einsum("ds,sil->dil", seed_weights, filled)
        with np.errstate(invalid="ignore"):  # a resample without any picture that has a level says nothing of it
            levels = np.einsum("di,dil->dl", image_weights, of_images) / (image_weights @ present)
        return np.concatenate([levels, levels.mean(1, keepdims=True)], axis=1)

    observed = means(np.full((1, num_seeds), 1 / num_seeds), np.ones((1, num_images)))[0]
    drawn = np.concatenate([means(s, i) for s, i in zip(np.split(seeds, 20), np.split(images, 20), strict=True)])
    low, high = np.nanquantile(drawn, [0.025, 0.975], axis=0)
    return observed.tolist(), np.stack([low, high], axis=1).tolist()


def collect(work: Path) -> dict[str, Any]:
    names = [name for name in ARMS if list((work / "runs").glob(f"{name}-*.json"))]
    runs = {n: [json.loads(p.read_text()) for p in sorted((work / "runs").glob(f"{n}-*.json"))] for n in names}
    fewest = min(len(found) for found in runs.values())
    runs = {name: found[:fewest] for name, found in runs.items()}
    places = [place for place in ("scenes", "photographs") if place in runs["hierarchy"][0]]
    results: dict[str, Any] = {"num_seeds": fewest, "arms": {}}
    for place in places:
        contrast = {name: matched(found, place) for name, found in runs.items()}["hierarchy"]
        results[f"num_{place}"] = int(contrast.shape[1])
        present = np.isfinite(contrast[0]).sum(0).tolist()
        results[f"num_{place}_with_level"] = dict(zip(LEVELS, present, strict=True))
        for name, found in runs.items():
            arm = results["arms"].setdefault(name, {"words": ARMS[name].words})
            arm[place] = judged(found, runs["hierarchy"], place)
    results["loss"] = {
        name: np.mean([r["loss"] for r in found], axis=0).tolist() for name, found in runs.items() if found[0]["loss"]
    }
    seconds = [r["cpu_seconds"] for found in runs.values() for r in found]
    results["cpu_seconds"] = {"one_run": float(np.median(seconds)), "all_runs": float(np.sum(seconds))}
    results["settings"] = asdict(SETTINGS) | {"size": SIZE, "clicks": CLICKS, "scenes": len(TRAIN)}
    results["segmenter"] = json.loads((work / "train" / "levels" / "cache.json").read_text())["checkpoint_hash"]
    results["exact_masks_as_attention"] = exact_masks_as_attention(work)
    results["versions"] = installed_versions()
    return results


def judged(found: list[dict[str, Any]], best: list[dict[str, Any]], place: str) -> dict[str, Any]:
    """One arm: both measures with intervals, what the hierarchy has more, and the figures behind them."""
    words = (*LEVELS, "mean")
    figures: dict[str, Any] = {}
    for measure, of in MEASURES.items():
        for key, values in {
            measure: of(found, place),
            f"hierarchy's {measure} - this": of(best, place) - of(found, place),
        }.items():
            means, intervals = bootstrap(values)
            figures[key] = {w: {"mean": m, "interval": i} for w, m, i in zip(words, means, intervals, strict=True)}
    claimed = [sum(r[place]["claimed"][number] == level for r in found) for number, level in enumerate(LEVELS)]
    return figures | {
        "heads_by_levels": np.nanmean(
            [np.array(r[place]["contrast"], dtype=float) for r in found], axis=(0, 1)
        ).tolist(),
        "z": np.mean([r[place]["z"] for r in found], axis=0).tolist(),
        "claimed_right": claimed,
        "area": np.mean([r[place]["area"] for r in found], axis=0).tolist(),
    }


def exact_masks_as_attention(work: Path) -> dict[str, list[float]]:
    """Shell contrast at its own level of attention that is the exact mask on each head's grid: what the measure allows.

    Not calibrated: there is no such attention at the clicks of other images.
    """
    found = {}
    for place, samples in judged_on(prepared(work)).items():
        scores = [
            [
                float(
                    shell_contrast(
                        area_average(sample.targets[level][None].float(), (rows, rows)),
                        sample.targets[None],
                        distinct=sample.valid[None],
                    )[0, 0, level]
                )
                for level, rows in enumerate(SETTINGS.levels)
            ]
            for sample in samples
        ]
        found[place] = np.nanmean(scores, axis=0).tolist()
    return found


def draw(results: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    places = [place for place in ("scenes", "photographs") if place in results["arms"]["hierarchy"]]
    names = list(results["arms"])
    figure = Figure(figsize=(10.5, 4.6), layout="constrained")
    axes = figure.subplots(1, len(places), sharey=True, squeeze=False)[0]
    colors = {"whole": "#440154", "part": "#21918c", "subpart": "#b5a300", "mean": "#000000"}
    for axis, place in zip(axes, places, strict=True):
        for offset, (level, color) in enumerate(colors.items()):
            for row, name in enumerate(names):
                found = results["arms"][name][place]
                low, high = found["contrast"][level]["interval"]
                y = len(names) - row + 0.27 - 0.18 * offset
                axis.plot([low, high], [y, y], color=color, linewidth=1.5)
                label = level if row == 0 else None
                marker = "D" if level == "mean" else "o"
                axis.plot(found["contrast"][level]["mean"], y, marker, color=color, markersize=4, label=label)
        axis.axvline(0, color="0.6", linewidth=0.8)
        axis.set_yticks([len(names) - row for row in range(len(names))], names)
        axis.set_xlabel("shell contrast at the head's own level,\nless that of other images (nats)")
        words = "generated test scenes" if place == "scenes" else "photographs, masks drawn by people"
        axis.set_title(f"{words} (n = {results[f'num_{place}']})", fontsize=10)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)


def draw_losses(results: dict[str, Any], path: Path) -> None:
    """Training loss of every arm by step: has it levelled off?"""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axis = figure.subplots()
    cycle = ["#440154", "#3b528b", "#21918c", "#5ec962", "#b5a300", "#000000", "#e66100", "#888888"]
    styles = ["-", "--"]
    for number, (name, losses) in enumerate(results["loss"].items()):
        steps = (np.arange(len(losses)) + 0.5) * LOG_EVERY
        axis.plot(steps, losses, styles[number % 2], color=cycle[number], label=name, linewidth=1.4)
    axis.set_xlabel(f"step (means of {LOG_EVERY} steps and {results['num_seeds']} seeds)")
    axis.set_ylabel("training loss (20 focal + Dice)")
    axis.set_ylim(bottom=0)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)


def spelled(figure: dict[str, Any], digits: int) -> str:
    """A mean and its interval."""
    low, high = figure["interval"]
    return f"{figure['mean']:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def table(results: dict[str, Any]) -> str:
    places = [place for place in ("scenes", "photographs") if place in results["arms"]["hierarchy"]]
    lines = []
    for place in places:
        lines += [
            f"**{place.capitalize()}** ({results[f'num_{place}']} pictures, {results['num_seeds']} seeds; "
            + ", ".join(f"{count} with a {level}" for level, count in results[f"num_{place}_with_level"].items())
            + ")",
            "",
            "| arm | taught by | whole | part | subpart | mean | hierarchy less this arm | selectivity "
            "| hierarchy less this arm |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for name, arm in results["arms"].items():
            found = arm[place]
            cells = [f"{found['contrast'][level]['mean']:+.2f}" for level in LEVELS]
            for measure in MEASURES:
                more = found[f"hierarchy's {measure} - this"]["mean"]
                cells += [spelled(found[measure]["mean"], 2), "–" if name == "hierarchy" else spelled(more, 3)]
            lines.append(f"| {name} | {arm['words']} | {' | '.join(cells)} |")
        cells = " | ".join(f"{value:+.2f}" for value in results["exact_masks_as_attention"][place])
        lines += [
            f"| – | exact masks as attention, not calibrated: what the measure allows | {cells} | – | – |",
            "",
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["prepare", "choose", "train", "collect"])
    parser.add_argument("--work", type=Path, default=Path("runs/hierarchy_supervision"))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(SEEDS)))
    parser.add_argument("--steps", nargs="+", type=int, default=[SETTINGS.steps], help="for choose")
    parser.add_argument("--rate", type=float, default=SETTINGS.learning_rate, help="for choose")
    given = parser.parse_args()
    if given.action == "prepare":
        prepare(given.work)
    elif given.action == "choose":
        choose(given.work, given.arms, given.steps, given.rate)
    elif given.action == "train":
        train(given.work, given.arms, given.seeds)
    else:
        results = collect(given.work)
        write_text(HERE / "results.json", json.dumps(results, indent=1) + "\n")
        draw(results, HERE / "figures" / "contrast.png")
        draw_losses(results, HERE / "figures" / "loss.png")
        begin, end = "<!-- results: written by run.py -->", "<!-- end of results -->"
        readme = (HERE / "README.md").read_text()
        before, after = readme.split(begin)[0], readme.split(end)[1]
        write_text(HERE / "README.md", f"{before}{begin}\n\n{table(results)}\n{end}{after}")
        print(table(results))


if __name__ == "__main__":
    main()
