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
# # Train attention that means whole, part and subpart
#
# Three heads of a small model learn to attend at SAM's three levels: the coarse head to the whole, the middle one to
# the part, the fine one to the subpart, each weighed by SAM's confidence in its mask. Offline, in a minute, on
# generated scenes; for photographs, name a real checkpoint and a folder of pictures (`arrcoc-sam cache`).

# %%
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

import arrcoc_sam as aa
from arrcoc_sam.report import mark_point, overlay_attention, show_image
from arrcoc_sam.training import (
    AttentionTraining,
    HierarchyDataset,
    measurable_samples,
    prepare_scenes,
    train_attention,
)

pd.set_option("display.precision", 2)
segmenter = aa.load_segmenter("tiny")

# %% [markdown]
# ## 1. The loss
#
# Each level has logits on a grid of its own, as coarse as you like. The masks are averaged by area to that grid, and
# levels are weighed by SAM's predicted IoU. Levels that don't count (a "subpart" that is no smaller than its part)
# teach nothing.

# %%
scene = aa.scenes.generate_scene(9_000_003)
x, y = scene.sample_point(scene.triples()[0][2], np.random.default_rng(0))
candidates = segmenter.decode(segmenter.encode(scene.image), aa.Prompts(points_xy=[[[x, y]]], labels=[[1]]))
hierarchy = candidates.hierarchy()

criterion = aa.HierarchicalAttentionLoss()
logits = [torch.zeros(1, rows, rows, requires_grad=True) for rows in (8, 16, 32)]
counts = hierarchy.counted & hierarchy.valid[:, None]
optimizer = torch.optim.Adam(logits, lr=0.3)
losses = []
for _ in range(60):
    loss = criterion(logits, hierarchy.masks, hierarchy.scores, valid=counts)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
losses[0], losses[-1], hierarchy.scores, counts

# %%
figure = Figure(figsize=(9, 4.6), layout="constrained")
for column, (level, learnt) in enumerate(zip(aa.MaskHierarchy.LEVELS, logits, strict=True)):
    for row, (shown, what) in enumerate(
        ((hierarchy.masks[0, column], "SAM"), (learnt[0].detach().sigmoid(), "learnt"))
    ):
        axes = figure.add_subplot(2, 3, 3 * row + column + 1)
        axes.imshow(shown, vmin=0, vmax=1)
        axes.set_title(f"{level}, {what}, {' × '.join(map(str, shown.shape))}", fontsize=9)
        axes.set_axis_off()
figure

# %% [markdown]
# ## 2. A cache of hierarchies
#
# SAM answers once; any number of trainings read its answers. The cache holds run lengths, scores and what counts, and
# says which weights made it.

# %%
cache = prepare_scenes("train", range(120), size=128, segmenter=segmenter)
truth = prepare_scenes("validation", range(8_000_000, 8_000_060), size=128)  # exact levels, to judge on
cache.table().to_pandas().head()

# %% [markdown]
# ## 3. Training
#
# `train_attention` is the command `arrcoc-sam train attention`: it resumes where it was stopped. The backbone is any
# timm model, or a segmenter's own image encoder; frozen, it sees each picture once, and only the heads learn.

# %%
settings = AttentionTraining(
    backbone="segmenter:tiny", frozen=True, batch_norm="frozen", image_size=128, levels=(8, 16, 32), steps=200
)
grid = {"target_hw": (64, 64), "image_size": settings.image_size}
judged = measurable_samples(HierarchyDataset(truth, **grid), settings.levels[-1])
model, report = train_attention(settings, HierarchyDataset(cache, **grid), "run", validation=judged)
heads = [f"head for the {level}" for level in aa.MaskHierarchy.LEVELS]
pd.DataFrame(report.contrast.nanmean(0), index=heads, columns=aa.MaskHierarchy.LEVELS)

# %% [markdown]
# The rows are heads, and each should be highest at its own level. The numbers are shell contrasts on pictures that
# were not trained on, beyond what a blob around the click has. A claim stands against the same head's attention on
# *other* pictures, corrected over heads and levels; a head that attends at two levels alike abstains. This was a short
# run on few scenes.

# %%
claims = report.claims
pd.DataFrame(claims.z, index=heads, columns=aa.MaskHierarchy.LEVELS).assign(
    claimed=claims.level, q_value=claims.q_value, abstains_because=claims.reason
)

# %% [markdown]
# ## 4. Granularity as a dial
#
# From 0, the subpart, to 1, the whole: the attended area can only grow.

# %%
sample = judged[0]
picture = sample.image.permute(1, 2, 0).numpy()
figure = Figure(figsize=(11, 2.6), layout="constrained")
for axes, granularity in zip(figure.subplots(1, 6), (None, 0.0, 0.25, 0.5, 0.75, 1.0), strict=True):
    if granularity is None:
        show_image(axes, picture)
        axes.set_title("the click", fontsize=9)
    else:
        with torch.no_grad():
            attended = model.at_granularity(sample.image[None], sample.point_xy[None], granularity)[0].sigmoid()
        overlay_attention(axes, picture, attended)
        axes.set_title(f"granularity {granularity}", fontsize=9)
    mark_point(axes, sample.point_xy)
figure

# %% [markdown]
# ## 5. And back to the analysis
#
# A trained model is an attention source like any other. One picture makes no claim; the report shows what its heads
# see.

# %%
analyzer = aa.GranularityAnalyzer(segmenter, model.as_source())
result = analyzer.analyze(scene.image, [[x, y]])
path = result.to_html("trained.html", command="notebooks/03_hierarchy_training")
print(path, path.stat().st_size // 1024, "KiB")
