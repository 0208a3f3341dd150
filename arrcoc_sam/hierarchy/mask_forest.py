"""MaskForest: all masks of an image, joined by containment into trees of objects, parts and parts of parts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from arrcoc_sam.errors import DataError, HierarchyError, InputError, ShapeError, describe, explain
from arrcoc_sam.hierarchy.levels import NESTED_SHARE
from arrcoc_sam.hierarchy.mask_hierarchy import MaskHierarchy
from arrcoc_sam.inputs import (
    Coordinates,
    RecordKind,
    as_coordinates,
    as_masks,
    as_numbers,
    as_records,
    as_size,
    parsed_json,
)
from arrcoc_sam.masks import containment, mask_boxes, pairwise_intersection
from arrcoc_sam.masks.rle import decode_rle, encode_rle

__all__ = ["MaskForest"]

_NODE: dict[str, RecordKind] = {
    "parent": "whole number or null",
    "index": "whole number",
    "score": "finite number or null",
    "segmentation": "any",
}


@dataclass(frozen=True, eq=False)
class MaskForest:
    """All masks of an image, joined by containment. Nodes are sorted by area, the largest first.

    The parent of a mask is the smallest mask that contains at least 0.9 of it.

    Attributes:
        masks: (N, H, W) bool.
        scores: (N,) raw predicted IoU, or 1 for masks that came without.
        index: (N,) int64, the position of each node among the masks given.
        areas: (N,) int64, pixels.
        parent: (N,) int64, a node that comes before, or -1 for a root.
        depth: (N,) int64, 0 for a root.
    """

    masks: Bool[Tensor, "N H W"]
    scores: Float[Tensor, " N"]
    index: Int[Tensor, " N"]
    areas: Int[Tensor, " N"]
    parent: Int[Tensor, " N"]
    depth: Int[Tensor, " N"]

    @classmethod
    def from_masks(
        cls,
        masks: Bool[Tensor, "N H W"] | np.ndarray,
        scores: Float[Tensor, " N"] | np.ndarray | Sequence[float] | None = None,
        *,
        duplicate_iou: float | None = 0.9,
        nested_share: float = NESTED_SHARE,
    ) -> MaskForest:
        """Join masks by containment. Empty masks are left out.

        Args:
            masks: Masks of one image, such as those of the automatic mode.
            scores: Their predicted IoU, raw; 1 by default.
            duplicate_iou: Of masks that agree better than this, only the one of the highest score is kept (the larger
                one where scores are equal). None keeps all.
            nested_share: The least share of a mask that its parent contains.

        Returns:
            The forest; no masks make an empty one.

        Raises:
            ShapeError: Shapes that do not go together.
            InputError: Masks that are not bool, or a threshold outside [0, 1].

        Example:
            >>> masks = torch.tensor([[[1, 0, 0, 0]], [[1, 1, 1, 0]], [[0, 0, 0, 1]]]).bool()
            >>> forest = MaskForest.from_masks(masks)
            >>> forest.index, forest.parent, forest.depth
            (tensor([1, 0, 2]), tensor([-1,  0, -1]), tensor([0, 1, 0]))
        """
        masks = as_masks(masks, min_rank=3)
        if masks.ndim != 3:
            raise ShapeError(explain(f"masks is {describe(masks)}", "(N, H, W)"))
        scores = masks.new_ones(len(masks), dtype=torch.float32) if scores is None else scores
        scores = as_numbers(scores, "scores", "(N,)", masks.device)
        scores = scores if scores.is_floating_point() else scores.float()
        if scores.shape != masks.shape[:1]:
            raise ShapeError(explain(f"scores is {describe(scores)}", f"(N,) = ({len(masks)},)"))
        for name, share in (("nested_share", nested_share), ("duplicate_iou", duplicate_iou)):
            if share is not None and not 0.0 < share <= 1.0:
                raise InputError(explain(f"{name}={share}", "a share in (0, 1]"))
        common = pairwise_intersection(masks, masks)
        order = common.diagonal().argsort(descending=True, stable=True)
        order = order[common.diagonal()[order] > 0]
        if duplicate_iou is not None:
            order = order[_first_of_its_kind(common[order][:, order], scores[order], duplicate_iou)]
        common = common[order][:, order]
        # Sorted by area, the smallest mask that contains a node is the last one before it that does.
        contains = (common / common.diagonal()[:, None] >= nested_share).tril(-1)
        before = torch.arange(len(order), device=masks.device)
        parent = torch.where(contains, before, -1).amax(-1) if len(order) else order
        return cls(masks[order], scores[order], order, common.diagonal(), parent, _depths(parent))

    def __repr__(self) -> str:
        """Sizes instead of all the numbers."""
        height, width = self.masks.shape[-2:]
        return f"MaskForest({len(self)} masks, {len(self.roots)} roots; {height} x {width} pixels)"

    def __len__(self) -> int:
        return len(self.masks)

    @property
    def roots(self) -> Int[Tensor, " n"]:
        """Nodes that no other contains, largest first."""
        return (self.parent < 0).nonzero()[:, 0]

    def children(self, node: int) -> Int[Tensor, " n"]:
        """Nodes whose parent this is, largest first."""
        return (self.parent == self._existing(node)).nonzero()[:, 0]

    def siblings(self, node: int) -> Int[Tensor, " n"]:
        """The other nodes with the same parent, largest first; of a root, the other roots."""
        same = self.parent == self.parent[self._existing(node)]
        same[node] = False
        return same.nonzero()[:, 0]

    @property
    def contained(self) -> Float[Tensor, " N"]:
        """The share of each node that lies inside its parent; NaN for a root."""
        inside = torch.full_like(self.scores, torch.nan)
        for node in (self.parent >= 0).nonzero()[:, 0].tolist():
            inside[node] = containment(self.masks[node], self.masks[int(self.parent[node])])
        return inside

    def path(self, node: int) -> Int[Tensor, " n"]:
        """The nodes from the root down to this one, itself included."""
        nodes = [self._existing(node)]
        while (above := int(self.parent[nodes[-1]])) >= 0:
            nodes.append(above)
        return torch.tensor(nodes[::-1], device=self.parent.device)

    def nodes_at(self, point_xy: Coordinates) -> Int[Tensor, " n"]:
        """Nodes whose mask holds the pixel under a point, largest first.

        Raises:
            InputError: The point lies outside the image.
        """
        height, width = self.masks.shape[-2:]
        x, y = as_coordinates(point_xy, 2, "point_xy").tolist()
        if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
            raise InputError(explain(f"the point (x, y) = ({x:g}, {y:g}) of {width} × {height} pixels", "one inside"))
        column, row = (min(int(v + 0.5), side - 1) for v, side in ((x, width), (y, height)))
        return self.masks[:, row, column].nonzero()[:, 0]

    def hierarchy_at(self, point_xy: Coordinates) -> MaskHierarchy:
        """Whole, part and subpart at a point: the path from a root to the smallest mask there.

        A path of more than three masks is read as :meth:`MaskHierarchy.from_masks` does; on one of fewer the smallest
        mask is repeated, so that the levels that are missing are not distinct.

        Args:
            point_xy: Pixel indices (x, y).

        Returns:
            The hierarchy of one prompt (K = 1); ``token_index`` holds nodes.

        Raises:
            InputError: The point lies outside the image.
            HierarchyError: No mask lies there.
        """
        here = self.nodes_at(point_xy)
        if len(here) == 0:
            x, y = as_coordinates(point_xy, 2, "point_xy").tolist()
            came = f"no mask of the forest holds the point (x, y) = ({x:g}, {y:g})"
            raise HierarchyError(explain(came, None, "choose a point on a mask (nodes_at tells)"))
        nodes = self.path(int(here[-1]))
        nodes = torch.cat([nodes, nodes[-1:].expand(max(0, 3 - len(nodes)))])
        return MaskHierarchy.from_masks(self.masks[nodes][None], self.scores[nodes][None], nodes)

    def to_dict(self) -> dict[str, Any]:
        """The forest as plain numbers and COCO run lengths, ready for JSON.

        Returns:
            ``size`` (height, width) and ``nodes``, each with ``id``, ``parent`` (None for a root), ``contained`` (the
            share of it inside its parent, None for a root), ``depth``, ``children``, ``siblings``, ``index``, ``area``,
            ``score`` (None for NaN), ``box_xyxy`` (pixel indices) and ``segmentation`` (COCO RLE).
        """
        runs, boxes = encode_rle(self.masks), mask_boxes(self.masks)
        nodes = [
            {
                "id": node,
                "parent": parent if parent >= 0 else None,
                "contained": share if parent >= 0 else None,
                "depth": depth,
                "children": self.children(node).tolist(),
                "siblings": self.siblings(node).tolist(),
                "index": index,
                "area": area,
                "score": None if math.isnan(score) else score,
                "box_xyxy": box,
                "segmentation": run,
            }
            for node, (parent, share, depth, index, area, score, box, run) in enumerate(
                zip(
                    self.parent.tolist(),
                    self.contained.tolist(),
                    self.depth.tolist(),
                    self.index.tolist(),
                    self.areas.tolist(),
                    self.scores.tolist(),
                    boxes.tolist(),
                    runs,
                    strict=True,
                )
            )
        ]
        return {"size": list(self.masks.shape[-2:]), "nodes": nodes}

    def to_json(self, *, indent: int | None = None) -> str:
        """:meth:`to_dict` as JSON text; :meth:`from_json` reads it."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> MaskForest:
        """What :meth:`to_dict` made: the same nodes and parents, whatever they were joined by.

        Args:
            record: ``size`` and ``nodes``; of each node ``parent``, ``index``, ``score`` and ``segmentation``.

        Returns:
            The forest, scores as float32; areas and depths are counted anew.

        Raises:
            DataError: Something is missing or no number, sizes differ, a mask is empty or beside its parent, or nodes
                are not in order: sorted by area, each after its parent.
        """
        given: object = record
        if not isinstance(given, Mapping) or "size" not in given or "nodes" not in given:
            raise DataError(explain(f"a forest is {describe(record)}", "a dictionary with 'size' and 'nodes'"))
        nodes = as_records(record["nodes"], _NODE, "the nodes of a forest")
        try:
            size = as_size(record["size"], "size")
            masks = [decode_rle([node["segmentation"]])[0] for node in nodes]
        except (DataError, InputError) as error:
            raise DataError(f"a forest: {error}") from error
        areas = [int(mask.sum()) for mask in masks]
        for number, (node, mask) in enumerate(zip(nodes, masks, strict=True)):
            parent = node["parent"]
            wrong = None
            if tuple(mask.shape) != size:
                wrong = f"has {mask.shape[0]} x {mask.shape[1]} pixels in a forest of {size[0]} x {size[1]}"
            elif not 0 < areas[number] <= (areas[number - 1] if number else areas[number]):
                wrong = f"has {areas[number]} pixels after one of {areas[max(number - 1, 0)]}"
            elif node["index"] < 0 or (parent is not None and not 0 <= parent < number):
                wrong = f"has the index {node['index']} and the parent {parent}"
            elif parent is not None and not bool((mask & masks[parent]).any()):
                wrong = f"lies beside its parent {parent}"
            if wrong is not None:
                expected = "masks of one size, sorted by area, none empty, each after the parent that it lies in"
                raise DataError(explain(f"node {number} of a forest {wrong}", expected))
        parents = torch.tensor([-1 if node["parent"] is None else node["parent"] for node in nodes], dtype=torch.int64)
        return cls(
            masks=torch.stack(masks) if masks else torch.zeros(0, *size, dtype=torch.bool),
            scores=torch.tensor([torch.nan if node["score"] is None else node["score"] for node in nodes]).float(),
            index=torch.tensor([node["index"] for node in nodes], dtype=torch.int64),
            areas=torch.tensor(areas, dtype=torch.int64),
            parent=parents,
            depth=_depths(parents),
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> MaskForest:
        """What :meth:`to_json` wrote; see :meth:`from_dict`.

        Raises:
            DataError: No JSON, or no forest.
        """
        record = parsed_json(text, "a forest")
        if not isinstance(record, dict):
            raise DataError(explain(f"a forest is {describe(record)}", "an object with 'size' and 'nodes'"))
        return cls.from_dict(record)

    def _existing(self, node: int) -> int:
        if not 0 <= node < len(self):
            raise InputError(explain(f"node {node} of a forest of {len(self)}", f"0 to {len(self) - 1}"))
        return node


def _depths(parent: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
    """How many nodes contain each."""
    depth, above = torch.zeros_like(parent), parent
    while bool((above >= 0).any()):
        depth = depth + (above >= 0)
        above = torch.where(above >= 0, parent[above.clamp_min(0)], -1)
    return depth


def _first_of_its_kind(
    intersections: Int[Tensor, "N N"], scores: Float[Tensor, " N"], duplicate_iou: float
) -> Bool[Tensor, " N"]:
    """Greedy: by score, a mask stays unless it agrees too well with one that stays. NaN scores come last."""
    areas = intersections.diagonal()
    iou = intersections / (areas[:, None] + areas - intersections)
    alike = (iou > duplicate_iou).cpu().numpy()
    ranked = torch.where(scores.isnan(), -torch.inf, scores).argsort(descending=True, stable=True)
    stays = torch.zeros(len(alike), dtype=torch.bool).numpy()
    for node in ranked.tolist():  # each decision depends on those before
        stays[node] = not (alike[node] & stays).any()
    return torch.from_numpy(stays).to(intersections.device)
