"""Whole, part and subpart found in a heap of masks: chains of masks that lie one inside the other."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from arrcoc_sam.hierarchy.mask_forest import MaskForest
from arrcoc_sam.masks.components import largest_interior_point

__all__ = ["nested_chains"]


def nested_chains(masks: Bool[Tensor, "N H W"]) -> tuple[Int64[Tensor, "K 3"], Float64[Tensor, "K 2"]]:
    """One chain for every mask that holds no other and lies in another, at the deepest pixel of its own.

    The masks are joined by containment (:class:`arrcoc_sam.hierarchy.MaskForest`: duplicates dropped, the parent of a
    mask being the smallest that contains 0.9 of it). A chain runs from the outermost mask, the whole, to the innermost
    one; of more than three masks the three that make the most distinct levels are taken, and of two the inner one is
    repeated. Masks that hold no other and lie in none make no chain: they tell no levels apart.

    Args:
        masks: (N, H, W) bool, all masks of an image.

    Returns:
        Positions of whole, part, subpart among ``masks``, (K, 3), and for each chain a click (x, y): the pixel deepest
        inside the part of the innermost mask that no smaller one covers. K may be 0.

    Example:
        >>> masks = torch.tensor([[[1, 0, 0, 0]], [[1, 1, 1, 0]], [[0, 0, 0, 1]]]).bool()
        >>> nested_chains(masks)
        (tensor([[1, 0, 0]]), tensor([[0., 0.]], dtype=torch.float64))
    """
    forest = MaskForest.from_masks(masks)
    leaves = [node for node in range(len(forest)) if int(forest.depth[node]) > 0 and len(forest.children(node)) == 0]
    # Nodes are sorted by area: what comes after a leaf is smaller, and would be the innermost mask wherever it lies.
    own = [forest.masks[node] & ~forest.masks[node + 1 :].any(0) for node in leaves]
    chains, points = [], []
    for region in own:
        if not bool(region.any()):
            continue  # covered by smaller masks, each with a chain of its own
        point = largest_interior_point(region)
        nodes = forest.hierarchy_at(point).token_index[0]
        chains.append(forest.index[nodes])
        points.append(point)
    if not chains:
        return torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, 2, dtype=torch.float64)
    return torch.stack(chains).cpu(), torch.stack(points).cpu()
