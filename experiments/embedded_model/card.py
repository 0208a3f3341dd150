# ruff: noqa: E501 (rows of Markdown tables)
"""Writes the embedded model's card from its measured results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LEVELS = ("whole", "part", "subpart")


def write_card(results: dict[str, Any], path: Path) -> None:
    """The card as Markdown; every number comes from ``results``."""
    earlier = json.loads(Path(__file__).with_name("earlier_phases.json").read_text())
    scoring = ", ".join(
        f"{stop - first:,} {style} scenes ({first:,} to {stop - 1:,})"
        for style, (first, stop) in results["scoring"].items()
    )
    lines = [
        "# tiny: the embedded demonstration model",
        "",
        "**A demonstration model.** It was trained from scratch on procedural scenes alone; of photographs it has seen pieces",
        "of scikit-image's 17, as surfaces and backgrounds, and no mask on one. It makes the demo, the tests and the tutorials",
        "run offline in seconds. Real work names a real checkpoint (`arrcoc-sam checkpoints list`).",
        "",
        "segment-anything's own prompt encoder and mask decoder (width 128, two layers) on a small encoder of stride 8,",
        f"convolutions with attention at stride 16: {results['parameters'] / 1e6:.2f} M parameters, {results['bytes'] / 1e6:.2f} MB as safetensors,",
        f"frame {results['image_size']} × {results['image_size']} px. Prompt tokens are told what the image shows at their places",
        "(`segmenters/prompt_content.py`), and what the IoU head predicts is corrected by two small networks that see the masks",
        "(`segmenters/mask_scoring.py`), in every predictor alike. Apache-2.0, as the package.",
        "",
    ]
    for split in results["splits"]:
        lines += split_section(split, results[split])
    if "seconds" in results:
        encode, click = (f"{1000 * results['seconds'][name]:.0f} ms" for name in ("encode", "click"))
        lines += [f"On {results['machine']}: {encode} to encode, {click} a click with masks at 256².", ""]
    if "nested-masks" in results:
        lines += real_pack_section(results["nested-masks"])
    lines += [
        "## How it was made",
        "",
        "20 focal + Dice and the IoU head's squared error; AdamW, Muon from phase 16 on, moving average, bfloat16, CPU but for",
        "phase 26. Up to phase 25 each phase goes on from the weights of the one before. Phases 0 to 3 made the weights of this",
        "package's first versions, by SAM's minimum over masks, from plain scenes and with an encoder without attention (commit",
        "`1a0e12c`). In phase 4 layers were added that at first change nothing, and two blocks of stride 32 were left out; prompt",
        "tokens are told their content since phase 5. From phase 4 on everything that a click may mean is learned, and a dense",
        "loss stands beside the decoder's; from phase 9 on some first prompts are masks that are wrong (docs/training.md). Half",
        "of the images from phase 8 on are crops, from phase 11 on down to .45 of a side, so that some objects are as large as",
        "things in photographs are. From phase 14 on the statistics of batch normalisation are frozen, and two processes of one",
        "thread each share a step. Phases 22 and 23 show lifelike scenes, too, and turn no image by 90°: photographs have an up.",
        "From phase 24 on natural ones are in their place, drawn at 384 px: what is shown large is as sharp as in photographs.",
        f"Phase 26 began with the mean of phases 23 and 25 (commit `{results['before']}`, whose `run.py all` makes it), grown by four",
        "layers of attention and five residual blocks, and was trained on a GPU (an NVIDIA H200), which stopped by the clock.",
        f"What ships is {mean_in_words(results['averaged'], results['before'])}, its matrices in a byte a number with a scale for each row.",
        "",
        "| phase | scenes (seeds) | steps | a step | trained | learning rate | weight of the dense loss | weight of the IoU loss | moving average | seed |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(phase_row(number, phase, scenes_of(phase)) for number, phase in enumerate(earlier)),
        *(phase_row(int(number), phase, scenes_of(phase)) for number, phase in results["phases"].items()),
        "",
        "Last, the networks that correct the predicted IoU, of three masks and of token 0, were fitted to what these weights",
        f"answer on {scoring}",
        "to clicks, boxes and foreign masks, and, token 0, to two to five clicks (`scoring.py`).",
        "",
        f"Evaluated at commit `{results['commit'][:12]}` with torch {results['versions']['torch']}. To make it again, a GPU and an hour of two cores:",
        "",
        "```bash",
        "uv run python experiments/embedded_model/run.py all",
        "```",
        "",
        "Weights that the command makes are not the same bit for bit: threads add in any order, and the shipped run was made in",
        "sittings. Phase 5 began with the weights of phase 4 themselves, not with their moving average; the first 1,750 steps of",
        "phase 0 ran a plain PyTorch version of the same losses; and in phase 9 the point that was asked with a foreign mask",
        "stayed a click of all later rounds, where the command now puts one that is right.",
        "",
    ]
    path.write_text("\n".join(lines))


EARLIER_SEEDS = {
    "plain": (0, 16_000),
    "rich": (1_000_000, 1_008_000),
    "lifelike": (1_100_000, 1_112_000),
    "natural": (1_200_000, 1_207_000),
}
"""Of the phases 4 to 25, whose record does not name them."""


def scenes_of(phase: dict[str, Any]) -> str:
    """The scenes of a phase: share of the images and seeds, by style."""
    if "first_seed" in phase:  # the first phases saw plain ones alone
        first = phase["first_seed"]
        return f"plain ({first:,} to {first + phase['num_scenes'] - 1:,})"
    seeds = phase.get("seeds", EARLIER_SEEDS)
    return ", ".join(
        f"{share:.0%} {style} ({seeds[style][0]:,} to {seeds[style][1] - 1:,})"
        for style, share in phase["shares"].items()
    )


def mean_in_words(shares: dict[str, float], before: str) -> str:
    """Whose weights ship."""
    names = [f"commit `{which}`" if which == before else f"phase {which}" for which in shares]
    if len(names) == 1:
        return f"what {names[0]} made"
    return f"the mean of the weights of {', '.join(names[:-1])} and {names[-1]}, {' : '.join(f'{share:g}' for share in shares.values())}"


def steps_of(phase: dict[str, Any]) -> str:
    """How long a phase was, and at which size."""
    stages = phase["training"]["stages"]
    if phase.get("seconds"):
        return f"{phase['taken']:,} at {stages[0]['image_size']} px, in {phase['seconds']:.0f} seconds of a GPU"
    stopped = f", stopped after {phase['stop_after']:,}" if phase.get("stop_after") else ""
    return ", then ".join(f"{stage['steps']:,} at {stage['image_size']} px" for stage in stages) + stopped


def phase_row(number: int, phase: dict[str, Any], scenes: str) -> str:
    """One phase of the training as a row."""
    training = phase["training"]
    first, recipe = training["stages"][0], training["recipe"]
    decoded = recipe.get("decoded_targets")
    cells = [
        str(number),
        scenes,
        steps_of(phase),
        f"{first['num_images']} images × {decoded or first['num_targets']} prompts × {recipe['num_rounds']} rounds"
        + (f", {first['num_targets']} in the dense loss" if decoded else "")
        + (f", {share:.0%} with a foreign mask" if (share := recipe.get("given_mask_probability", 0.0)) else ""),
        trained_parts(training["trainable"]),
        f"{training['learning_rate']:g}",
        f"{recipe.get('grouping_weight', 0.0):g}",
        f"{recipe['iou_weight']:g}" + (", expected IoU" if recipe["expected_iou"] else ""),
        f"{training['ema_decay']:g}",
        str(training["seed"]),
    ]
    return f"| {' | '.join(cells)} |"


SPLITS = {
    "scenes-test-v1": "plain scenes, as in training",
    "scenes-test-v2": "rich scenes",
}


def split_section(split: str, summary: dict[str, Any]) -> list[str]:
    """One test split as tables."""
    lines = [
        f"## Measured on `{split}`: {SPLITS[split]}",
        "",
        f"{summary['num_images']} held-out scenes, {summary['num_nodes']:,} annotated nodes, one click drawn uniformly in each"
        " (the protocol is",
        "`arrcoc_sam/quality/click_protocol.py`).",
        "",
        "| one click, three masks | all | whole | part | subpart |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, title in (
        ("oracle_iou", "oracle IoU (best of three)"),
        ("automatic_iou", "automatic IoU (highest predicted)"),
    ):
        cells = [summary[name], *(summary[f"{name}/{level}"] for level in LEVELS)]
        lines.append(f"| {title} | " + " | ".join(f"{value:.3f}" for value in cells) + " |")
    lines += [
        "",
        "| IoU head | value |",
        "| --- | --- |",
        f"| Pearson, predicted against actual, all candidates | {summary['pearson']:.3f} |",
        f"| mean absolute error, all candidates | {summary['mae']:.3f} |",
        f"| selection accuracy (within .05 of the best, any node under the click) | {summary['selection_accuracy']:.3f} |",
        f"| prompts whose three masks are distinct | {summary['distinct_share']:.3f} |",
        "",
        "| after more clicks (token 0) | IoU | Pearson | MAE |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {k} clicks | {summary[f'iou_after_{k}']:.3f} | {summary[f'pearson_after_{k}']:.3f} | {summary[f'mae_after_{k}']:.3f} |"
        for k in (3, 8)
        if f"iou_after_{k}" in summary
    ]
    return [*lines, ""]


def trained_parts(patterns: list[str]) -> str:
    """What the patterns of a phase leave free, in words."""
    names = {
        "image_encoder.*": "encoder",
        "prompt_encoder.*": "prompt encoder",
        "mask_decoder.transformer.*": "decoder",
    }
    names |= {
        "mask_decoder.iou_prediction_head.*": "IoU head",
        "mask_decoder.mask_scoring.*": "mask scoring",
        "*": "all",
    }
    return ", ".join(name for pattern, name in names.items() if pattern in patterns)


def real_pack_section(pack: dict[str, Any]) -> list[str]:
    """Human masks on real photographs, by source."""
    lines = [
        "## On real photographs",
        "",
        "One click on human-drawn triples (whole ⊇ part ⊇ subpart): oracle IoU by level, beside a disc of the true area",
        "around the click, which knows nothing but the size. Where the model is below the disc it is of no use there.",
        "",
        "| source | triples | level | oracle | automatic | disc |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for source, figures in pack.items():
        for level in LEVELS:
            row = figures[level]
            mark = "" if row["oracle"] > row["disc"] else " (below the disc)"
            lines.append(
                f"| {source} | {figures['triples']} | {level} | {row['oracle']:.3f}{mark} | {row['automatic']:.3f} | {row['disc']:.3f} |"
            )
    return [*lines, ""]
