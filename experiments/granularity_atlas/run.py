"""The atlas where everything can be had offline: random weights, and features of the embedded encoder; see README.md.

uv run python experiments/granularity_atlas/run.py                 # the figures of README.md
uv run python experiments/granularity_atlas/run.py --scenes 40 --out /tmp/atlas --no-record   # a look
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sources import SIDE, FeatureSimilarity, TrueLevels

import arrcoc_sam as aa
from arrcoc_sam.attention import CallableAttention, ViTAttention
from arrcoc_sam.cli.stage_progress import stage_progress
from arrcoc_sam.granularity.atlas.run import AtlasResult, run_atlas
from arrcoc_sam.hierarchy.levels import LEVELS
from arrcoc_sam.report import Provenance
from arrcoc_sam.report.atlas.page import atlas_report
from arrcoc_sam.report.atlas.plots import atlas_figures
from arrcoc_sam.report.atlas.tables import claim_counts, groups, of_group
from arrcoc_sam.scenes import GENERATOR_VERSION, VALIDATION_SEEDS, generate_scene
from arrcoc_sam.segmenters.tiny import build_tiny, set_image_size

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FIRST_SEED = 7_000_000
VIT = "timm:vit_tiny_patch16_224"
BEGIN, END = "<!-- results: written by run.py -->", "<!-- end of results -->"


def sources(segmenter: aa.Segmenter, seed: int) -> tuple[CallableAttention, dict[str, Any]]:
    """The trained encoder's features, and beside them the same encoder and a transformer with random weights."""
    torch.manual_seed(seed)
    untrained = build_tiny()
    trained = segmenter.model
    for model in (trained, untrained):
        set_image_size(model, SIDE)

    def similarity(model: Any) -> CallableAttention:
        return CallableAttention(FeatureSimilarity(model), names=FeatureSimilarity.names, takes_points=True)

    transformer = ViTAttention(VIT, pretrained=False, query="point", framing="squash", image_size=2 * SIDE)
    return similarity(trained), {
        "encoder, random weights": similarity(untrained),
        "transformer, random weights": transformer,
    }


def atlas(scenes: list[Any], levels: str, out: Path, seed: int) -> AtlasResult:
    """One atlas, with its page and figures."""
    segmenter = aa.load_segmenter("tiny", device="cpu")
    source, controls = sources(segmenter, seed)
    oracle: Any = TrueLevels(scenes) if levels == "true" else segmenter
    with stage_progress() as progress:
        result = run_atlas(
            [scene.image for scene in scenes],
            source,
            oracle,
            out,
            controls=controls,
            points_per_side=4,
            seed=seed,
            description={
                "scenes": f"generator version {GENERATOR_VERSION}, {SIDE} px, seeds from {FIRST_SEED}",
                "levels": "of the scene itself" if levels == "true" else "found by tiny",
                "checkpoint": segmenter.checkpoint_hash,
            },
            progress=progress,
        )
    words = "the levels are the scenes' own" if levels == "true" else "the levels are those that tiny finds"
    atlas_report(
        result,
        out / "report.html",
        title="Atlas of feature similarity in the embedded encoder",
        notes=[f"Generated scenes; {words}. “The model” is the embedded encoder's features, which are no attention."],
        provenance=Provenance(
            command="python experiments/granularity_atlas/run.py",
            segmenter=None if levels == "true" else "tiny",
            checkpoint_hash=segmenter.checkpoint_hash,
            attention="feature similarity at a click",
            device="cpu",
            seed=seed,
        ),
    )
    for name, figure in atlas_figures(result).items():
        figure.savefig(out / f"{name}.png")
    return result


def summary(result: AtlasResult) -> dict[str, Any]:
    """What is quoted of an atlas."""
    return {
        "images": result.num_images,
        "prompts": int(result.images["prompts"].sum()),
        "measurable_share": round(1 - result.unmeasurable_share, 4),
        "draws": result.info["num_draws"],
        "groups": {
            group: {
                "maps": len(of_group(result, group)),
                **claim_counts(of_group(result, group)),
                **{f"largest_z_{level}": largest(of_group(result, group)[f"z_{level}"]) for level in LEVELS},
            }
            for group in groups(result)
        },
        "stages": {
            row["map"]: {
                "claim": row["level"],
                **{f"z_{level}": round(row[f"z_{level}"], 1) for level in LEVELS},
                **{f"report_z_{level}": round(row[f"report_z_{level}"], 1) for level in LEVELS},
            }
            for row in result.of().to_dict("records")
        },
        "ablation": [
            {key: (round(value, 4) if isinstance(value, float) else value) for key, value in row.items()}
            for row in result.ablation.to_dict("records")
        ],
    }


def largest(values: Any) -> float | None:
    """The largest number that is defined."""
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    return round(float(finite.max()), 1) if finite.size else None


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = []
    for levels, title in (("true", "Levels of the scene itself"), ("tiny", "Levels found by the embedded segmenter")):
        found = results[levels]
        lines += [
            f"**{title}**: {found['images']} scenes, {100 * found['measurable_share']:.0f} % of {found['prompts']} "
            "clicks measurable.",
            "",
            "| maps | number | whole | part | subpart | abstain | largest z: whole | part | subpart |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for group, row in found["groups"].items():
            name = "embedded encoder, trained" if group == "model" else group
            counts = [row[kind] for kind in ("maps", *LEVELS, "abstain")]
            scores = ["–" if row[f"largest_z_{level}"] is None else row[f"largest_z_{level}"] for level in LEVELS]
            lines.append("| " + " | ".join(map(str, [name, *counts, *scores])) + " |")
        lines += ["", "| stage | claim | z whole | z part | z subpart |", "| --- | --- | --- | --- | --- |"]
        for name, row in found["stages"].items():
            cells = [name, row["claim"], *(row[f"z_{level}"] for level in LEVELS)]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
        lines.append("")
    lines.append(
        f"z in null sd, over all scenes. {results['machine']}, torch {results['versions']['torch']}: "
        f"{results['seconds']:.0f} s."
    )
    return "\n".join(lines)


def record(results: dict[str, Any]) -> None:
    """Write results.json and the table in README.md."""
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    readme = HERE / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    readme.write_text(f"{before}{BEGIN}\n\n{table(results)}\n\n{END}{rest.partition(END)[2]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=ROOT / "runs" / "granularity_atlas", help="pages and figures go here"
    )
    parser.add_argument("--no-record", action="store_true", help="leave results.json and README.md alone")
    arguments = parser.parse_args()
    start = time.process_time()
    seeds = range(FIRST_SEED, FIRST_SEED + arguments.scenes)
    if seeds[-1] not in VALIDATION_SEEDS:
        parser.error("--scenes runs out of the validation seeds")
    scenes = [generate_scene(seed, SIDE) for seed in seeds]
    results: dict[str, Any] = {
        levels: summary(atlas(scenes, levels, arguments.out / levels, arguments.seed)) for levels in ("true", "tiny")
    }
    results |= {
        "seconds": round(time.process_time() - start, 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU, CPU time",
        "versions": {"arrcoc_sam": aa.__version__, "torch": torch.__version__, "numpy": np.__version__},
        "seed": arguments.seed,
        "first_scene": FIRST_SEED,
    }
    print(table(results))
    if not arguments.no_record:
        record(results)


if __name__ == "__main__":
    main()
