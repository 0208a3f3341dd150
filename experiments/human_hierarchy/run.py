"""Do human masks and a segmenter's lead to the same answer about attention? See README.md.

uv run python experiments/human_hierarchy/run.py                              # the embedded demonstration model
uv run python experiments/human_hierarchy/run.py --segmenter sam_vit_b        # a real one
uv run python experiments/human_hierarchy/run.py --limit 10                   # a look at ten images, not recorded
uv run python experiments/human_hierarchy/run.py --convert nested.json        # only the COCO file, for other commands
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from agreement import ANSWERS, agreement
from pack import convert_pack, image_sources
from rich.progress import track

import arrcoc_sam as aa
from arrcoc_sam.attention import CallableAttention
from arrcoc_sam.datasets import CocoDataset, CocoImage
from arrcoc_sam.hierarchy import MaskHierarchy
from arrcoc_sam.hierarchy.levels import LEVELS
from arrcoc_sam.masks import mask_iou

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results.json"
BEGIN, END = "<!-- results: written by run.py -->", "<!-- end of results -->"


def compare(segmenter: aa.Segmenter, data: CocoDataset, images: list[CocoImage], grid: int) -> dict[str, Any]:
    """Answers and contrasts of the same maps by human masks, by the segmenter's, and by discs, triple by triple."""
    source = aa.RelevanceAttention(grid=grid)
    rows: dict[str, list[Any]] = {"image": [], "names": []}
    for image in track(images, "Comparing"):
        pixels = data.load_image(image)
        found = data.hierarchies(image)
        human, points = found if found is not None else (None, None)
        if human is None or points is None:
            continue
        triples = human.token_index[:, 1] != human.token_index[:, 2]  # a pair repeats its part
        if not bool(triples.any()):
            continue
        human, points = human[triples], points[triples]
        with torch.no_grad():
            maps = source(pixels, points)
            prompts = aa.Prompts(points_xy=points[:, None])
            answered = segmenter.decode(segmenter.encode(pixels), prompts).hierarchy()
        analyzer = aa.GranularityAnalyzer(None, CallableAttention(lambda _, maps=maps: maps))
        for judge, hierarchy in (("human", human), ("segmenter", answered), ("discs", discs(human, points))):
            result = analyzer.analyze(pixels, points, hierarchy=hierarchy)
            numbers = np.vectorize(ANSWERS.index)(result.best_match).T
            rows.setdefault(f"{judge}/answers", []).append(numbers)
            rows.setdefault(f"{judge}/contrasts", []).append(result.metrics["shell_contrast"].transpose(0, 1).numpy())
            rows.setdefault(f"{judge}/iou", []).append(mask_iou(hierarchy.masks, human.masks).numpy())
        rows["image"] += [str(image.id)] * len(points)
        rows["names"] = list(maps.names)
    return {
        key: np.concatenate(values) if "/" in key else (np.array(values) if key == "image" else values)
        for key, values in rows.items()
    }


def discs(human: MaskHierarchy, points_xy: torch.Tensor) -> MaskHierarchy:
    """A control that knows the click and the human areas, and nothing of shapes: the pixels nearest to the click."""
    height, width = human.masks.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    squared = (x - points_xy[:, 0, None, None]) ** 2 + (y - points_xy[:, 1, None, None]) ** 2
    rank = squared.flatten(1).argsort(dim=1, stable=True).argsort(dim=1).reshape(squared.shape)
    return MaskHierarchy.from_masks(rank[:, None] < human.areas[..., None, None])


def summarize(rows: dict[str, Any], sources: dict[str, str]) -> dict[str, Any]:
    """Agreement with the human masks by data set, judge and attention map."""
    of = np.array([sources[image] for image in rows["image"]])
    summary: dict[str, Any] = {}
    for source in sorted(set(of)):
        here = of == source
        summary[source] = {
            judge: {
                "mean_iou": dict(zip(LEVELS, rows[f"{judge}/iou"][here].mean(0).round(4).tolist(), strict=True)),
                "maps": {
                    name: agreement(
                        rows["human/answers"][here, i],
                        rows[f"{judge}/answers"][here, i],
                        rows["human/contrasts"][here, i],
                        rows[f"{judge}/contrasts"][here, i],
                        rows["image"][here],
                    )
                    for i, name in enumerate(rows["names"])
                },
            }
            for judge in ("segmenter", "discs")
        }
    return summary


def table(results: dict[str, Any]) -> str:
    """The results as Markdown, one row a data set, attention map and judge."""
    head = ["source", "map", "levels from", "both answer", "equal", "κ", *(f"ρ {level}" for level in LEVELS)]
    head += ["abstain: human", "other"]
    lines = []
    for name, result in results.items():
        lines += [f"**{name}** against human masks ({result['cpu_seconds']:.0f} s of CPU, {result['machine']}):", ""]
        lines += [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
        for source, judges in result["agreement"].items():
            for map_name in next(iter(judges.values()))["maps"]:
                for judge, found in judges.items():
                    cell = found["maps"][map_name]
                    cells = [source, map_name, judge, f"{cell['both_answer']} of {cell['triples']}"]
                    figures = [cell["equal"], cell["kappa"], *cell["spearman"].values()]
                    figures += [cell["abstain"], cell["abstain_other"]]
                    lines.append(f"| {' | '.join(cells + [_figure(values) for values in figures])} |")
        lines += ["", "Mean IoU with the human masks:", "", f"| source | levels from | {' | '.join(LEVELS)} |"]
        lines.append("| --- | --- | --- | --- | --- |")
        for source, judges in result["agreement"].items():
            for judge, found in judges.items():
                ious = " | ".join(f"{found['mean_iou'][level]:.2f}" for level in LEVELS)
                lines.append(f"| {source} | {judge} | {ious} |")
        lines.append("")
    return "\n".join(lines)


def _figure(values: list[float | None]) -> str:
    value, low, high = ("–" if v is None else f"{v:.2f}".replace("-", "−") for v in values)
    return value if low == "–" else f"{value} [{low}, {high}]"


def record(name: str, result: dict[str, Any]) -> None:
    """Put a run into results.json, beside those of other segmenters, and its table into README.md."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[name] = result
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    readme = HERE / "README.md"
    before, rest = readme.read_text().split(BEGIN)
    readme.write_text(f"{before}{BEGIN}\n\n{table(results)}\n{END}{rest.split(END)[1]}")


def data_folder() -> Path:
    """The evaluation data that lies beside a checkout, or where ARRCOC_SAM_DATA says."""
    return Path(os.environ.get("ARRCOC_SAM_DATA", ROOT.parent / "shared" / "data"))


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segmenter", default="tiny", help="a name that load_segmenter takes")
    parser.add_argument("--checkpoint", type=Path, help="a file of weights")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--grid", type=int, default=32, help="cells along the longer side of the attention maps")
    parser.add_argument("--limit", type=int, help="only so many images, evenly spread; nothing is recorded")
    parser.add_argument("--convert", type=Path, metavar="FILE", help="only write the pack's COCO file")
    arguments = parser.parse_args()
    pack = data_folder() / "nested-masks"
    if not pack.is_dir():
        parser.exit(2, f"error: {pack} is not there. Mend: set ARRCOC_SAM_DATA to the folder that has nested-masks.\n")
    if arguments.convert:
        print(convert_pack(pack, arguments.convert))
        return

    began = time.process_time()  # others may share the machine
    segmenter = aa.load_segmenter(arguments.segmenter, checkpoint=arguments.checkpoint, device=arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        data = CocoDataset.read(convert_pack(pack, Path(folder) / "nested.json"), images=pack)
    images = list(data.images)
    if arguments.limit:
        images = [images[i] for i in np.linspace(0, len(images) - 1, arguments.limit).round().astype(int)]
    rows = compare(segmenter, data, images, arguments.grid)
    result = {
        "agreement": summarize(rows, image_sources(pack)),
        "attention": "RelevanceAttention",
        "grid": arguments.grid,
        "segmenter": segmenter.name,
        "checkpoint_hash": segmenter.checkpoint_hash,
        "cpu_seconds": round(time.process_time() - began, 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {segmenter.device}",
        "versions": {"arrcoc_sam": aa.__version__, "torch": torch.__version__, "numpy": np.__version__},
        "commit": commit(),
    }
    if arguments.limit is None:
        record(arguments.segmenter if arguments.grid == 32 else f"{arguments.segmenter}, grid {arguments.grid}", result)
    print(table({arguments.segmenter: result}))


if __name__ == "__main__":
    main()
