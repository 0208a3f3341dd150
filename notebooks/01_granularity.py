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
# # At which granularity does attention work?
#
# SAM answers one click with three masks, roughly *whole*, *part* and *subpart*. This tutorial compares attention maps
# with these masks, step by step, offline, in seconds: with the embedded demonstration model, on a scene whose true
# levels are known and on a photograph. For real work, name a real checkpoint: `aa.load_segmenter("sam_vit_h")`.

# %%
import numpy as np
import pandas as pd
from skimage import data

import arrcoc_sam as aa

pd.set_option("display.precision", 2)

# %% [markdown]
# ## 1. One click, three masks
#
# Encode once, decode many prompts. The candidates come in the order of the decoder's tokens, which says nothing about
# levels; `hierarchy()` names them by area and nesting.

# %%
segmenter = aa.load_segmenter("tiny")
scene = aa.scenes.generate_scene(9_000_003)
whole, part, subpart = scene.triples()[0]
x, y = scene.sample_point(subpart, np.random.default_rng(0))

embedding = segmenter.encode(scene.image)
candidates = segmenter.decode(embedding, aa.Prompts(points_xy=[[[x, y]]], labels=[[1]]))
hierarchy = candidates.hierarchy()
pd.DataFrame(
    {
        "level": aa.MaskHierarchy.LEVELS,
        "token": hierarchy.token_index[0],
        "predicted IoU": hierarchy.scores[0],
        "area": hierarchy.areas[0],
        "distinct": hierarchy.distinct[0],
    }
)

# %% [markdown]
# ## 2. A question with a known answer
#
# Attention planted on the part, and nowhere else: does the analysis say so? The hierarchy is the scene's own, exact.

# %%
truth = aa.MaskHierarchy.from_masks(scene.masks[[whole, part, subpart]][None])
planted = aa.ArrayAttention(np.stack([scene.masks[whole], scene.masks[part], scene.masks[subpart]]) + 0.05)
result = aa.GranularityAnalyzer(None, planted).analyze(scene.image, [[x, y]], hierarchy=truth)
result.to_frame()[["map", "level", "shell_contrast", "pearson", "mass_accuracy", "best_match"]]

# %% [markdown]
# `shell_contrast` compares the density of attention in each shell (whole without part, part without subpart, subpart)
# with that of the shell around it. Attention spread evenly over the *whole* has its contrast at the whole only.
# `mass_accuracy` would say "whole" every time: the larger mask holds more of anything. That area bias is why the raw
# mass, and correlations without a null, make no claim here.

# %% [markdown]
# ## 3. ARR-COC's relevance maps on a photograph
#
# Three ways of knowing, and their balance, as maps on a 32 × 32 grid: *propositional* (local entropy), *perspectival*
# (edges), *participatory* (similarity to the clicked place).

# %%
image = data.astronaut()
relevance = aa.RelevanceAttention()
analyzer = aa.GranularityAnalyzer(segmenter, relevance)
result = analyzer.analyze(image, [[224, 110]])
figure = result.plot()
figure

# %% [markdown]
# `best_match` is "abstain" where the three masks are not distinct and nested, where the grid is too coarse to tell the
# shells apart, or where no contrast is above zero. One image makes no claim: `calibrated` is False.

# %%
result.to_frame().pivot_table(index="map", columns="level", values="shell_contrast", observed=True), result.best_match

# %% [markdown]
# ## 4. Against a null
#
# With the same source's maps of *other* images as reference, the contrast is measured beyond what the source does
# anyway, whatever the picture: centre bias, borders, sinks. Values become standard deviations of that null.

# %%
rng = np.random.default_rng(0)


def crop(photograph: np.ndarray, side: int = 256) -> np.ndarray:
    """A random square of a photograph."""
    top, left = (int(rng.integers(0, length - side + 1)) for length in photograph.shape[:2])
    return photograph[top : top + side, left : left + side]


others = [
    crop(photograph) for photograph in (data.chelsea(), data.coffee(), data.rocket(), data.cat()) for _ in range(10)
]
reference = analyzer.reference_maps(others, [[224, 110]], image.shape[:2])
calibrated = analyzer.analyze(image, [[224, 110]], reference=reference)
calibrated.to_frame()[["map", "level", "shell_contrast", "z", "p_value", "best_match"]]

# %% [markdown]
# ## 5. A report to send around

# %%
path = result.to_html("granularity.html", command="notebooks/01_granularity")
print(path, path.stat().st_size // 1024, "KiB")
