# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # How good is a mask that SAM did not make?
#
# SAM predicts the IoU of its *own* masks. This tutorial scores masks from elsewhere: it prompts SAM with the mask,
# bounds the mask's IoU with the object, calibrates the score, and filters a data set by it. It runs offline, in
# seconds, with the embedded demonstration model, which knows generated scenes and little else. For photographs, name a
# real checkpoint: `aa.load_segmenter("sam_vit_h")`.

# %%
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image
from pycocotools.mask import encode

import arrcoc_sam as aa
from arrcoc_sam.masks import mask_iou
from arrcoc_sam.quality import (
    KeepRules,
    degrade,
    embedded_calibration_path,
    evaluate_iou_head,
    judge,
    mask_context,
    read_scores,
    score_masks,
)

pd.set_option("display.precision", 2)

# %% [markdown]
# ## 1. One object, one mask made wrong in many ways
#
# The true mask is known here, so each score can be held against the IoU that it speaks of.

# %%
segmenter = aa.load_segmenter("tiny")
scene = aa.scenes.generate_scene(9_000_003)
whole = scene.triples()[0][0]
mask = scene.masks[whole]
context = mask_context(scene.masks, whole)
kinds = ["dilate", "erode", "shift", "hole", "boundary_noise"]
variants = {"as it is": mask} | {kind: degrade(mask, kind, 0.4, context=context) for kind in kinds}

estimator = aa.MaskQualityEstimator(segmenter, calibration=embedded_calibration_path())
scores = estimator.estimate(scene.image, list(variants.values()))
frame = scores.to_frame().assign(
    mask=list(variants), true_iou=[float(mask_iou(each, mask)) for each in variants.values()]
)
frame[["mask", "true_iou", "quality", "interval_low", "interval_high", "lower_bound", "upper_bound"]]

# %%
figure = Figure(figsize=(2.2 * len(variants), 2.8), layout="constrained")
for axes, (name, variant), row in zip(
    figure.subplots(1, len(variants)), variants.items(), frame.itertuples(), strict=True
):
    axes.imshow(scene.image)
    axes.contour(variant, levels=[0.5], colors="red", linewidths=1.5)
    axes.set_title(f"{name}\ntrue {row.true_iou:.2f}, scored {row.quality:.2f}", fontsize=9)
    axes.set_axis_off()
figure

# %% [markdown]
# `alignment_iou` is the IoU of the mask with SAM's closest answer, and is measured; `predicted_iou` is what the head
# says of that answer. Jaccard distance is a metric, so the two bound the IoU of the mask with the object, as far as
# the head is right. `quality` is the lower bound until a calibration turns it into an estimate with an interval.

# %%
frame[["mask", "alignment_iou", "predicted_iou", "stability", "soft_iou", "token_index"]]

# %% [markdown]
# ## 2. Does the score rank masks?
#
# Eight masks of each of forty scenes, right or wrong in seven ways: besides those above, merged with a neighbour, or a
# part for the whole. Spearman's correlation with the true IoU is what a filter lives on; its interval is a bootstrap
# over images.

# %%
rng = np.random.default_rng(0)
rows = []
for seed in range(9_000_100, 9_000_140):
    scene = aa.scenes.generate_scene(seed)
    nodes, masks, truths = scene.masks, [], []
    for node in rng.integers(0, len(nodes), 8):
        context = mask_context(nodes, node)
        kind, severity = rng.choice(context.kinds), rng.uniform(0.05, 1)
        masks.append(nodes[node] if rng.random() < 0.3 else degrade(nodes[node], kind, severity, context=context))
        truths.append(float(mask_iou(masks[-1], nodes[node])))
    rows.append(estimator.estimate(scene.image, masks).to_frame().assign(image_id=seed, true_iou=truths))
many = pd.concat(rows, ignore_index=True)
report = evaluate_iou_head(
    many["quality"].to_numpy()[:, None], many["true_iou"].to_numpy()[:, None], image_id=many["image_id"].to_numpy()
)
table = report.to_frame().set_index("metric")
table.loc[["spearman", "pearson", "mae", "ece"], ["value", "low", "high", "num_images"]]

# %%
figure = Figure(figsize=(4, 4), layout="constrained")
axes = figure.subplots()
axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
axes.scatter(many["quality"], many["true_iou"], s=8, alpha=0.6)
axes.set(xlabel="quality, calibrated", ylabel="true IoU", xlim=(0, 1), ylim=(0, 1), aspect="equal")
figure

# %% [markdown]
# Masks with a good score and a poor IoU are mostly good masks of *another* object, such as a part. Image and mask
# alone don't tell which object was meant.
#
# ## 3. Filter a data set
#
# A data set in COCO's format whose masks are wrong in three of ten cases. `score_masks` is the command `arrcoc-sam
# score`: it resumes, its memory is flat, and what can't be scored is listed and not lost.

# %%
folder = Path("dataset")
(folder / "images").mkdir(parents=True, exist_ok=True)
rng = np.random.default_rng(1)
images, annotations, corrupted = [], [], {}
for index, seed in enumerate(range(9_000_200, 9_000_230)):
    scene = aa.scenes.generate_scene(seed)
    Image.fromarray(scene.image).save(folder / "images" / f"{index}.png")
    height, width = scene.image.shape[:2]
    images.append({"id": index, "file_name": f"images/{index}.png", "height": height, "width": width})
    for mask in scene.masks:
        number = len(annotations)
        corrupted[number] = bool(rng.random() < 0.3)
        if corrupted[number]:
            mask = degrade(mask, rng.choice(kinds), rng.uniform(0.4, 0.9), seed=number)
        code = encode(np.asfortranarray(mask.astype(np.uint8)))
        annotations.append(
            {
                "id": number,
                "image_id": index,
                "category_id": 1,
                "iscrowd": 0,
                "area": int(mask.sum()),
                "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
            }
        )
(folder / "masks.json").write_text(
    json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]})
)

# %%
lean = aa.MaskQualityEstimator(segmenter, calibration=embedded_calibration_path(), keep_masks=False)
summary = score_masks(folder / "masks.json", folder / "scores.parquet", lean)
scored = read_scores(summary.scores)
judgement = judge(scored, KeepRules(min_quality=0.6))
pd.crosstab(scored["id"].astype(int).map(corrupted).rename("corrupted"), judgement.kept.rename("kept"))

# %% [markdown]
# The command writes the data set of what stays, and a report with histograms, what was dropped of each class, and the
# best and the worst masks as pictures:

# %%
command = "arrcoc_sam filter dataset/scores.parquet --min-quality 0.6 --out dataset/kept.json"
print(subprocess.run([sys.executable, "-m", *command.split()], check=True, capture_output=True, text=True).stdout)
