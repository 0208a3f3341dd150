"""Scenes that live on a GPU: drawn by processes beside the training, made into batches where they are needed.

A GPU takes more images a second than processes can cut, resize and hand over. Here each scene is handed over once, as
small as it is kept (image, labels, tree, and two masks of somebody else's making), and crops, targets, clicks and what
they may have meant are worked out for whole batches at once. What a batch shows is what
:func:`arrcoc_sam.training.batches.draw_batch` shows, but that scenes are seen in windows of all proportions, padded as
photographs are; that an image with fewer nodes than targets is asked for some of them again, at other places; that
foreign masks are at most two a scene; and that there is no round without a click in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from threading import Thread
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from parts import start_worker
from phases import SIDES
from torch import Tensor

from arrcoc_sam.masks import mask_boxes
from arrcoc_sam.masks.components import largest_interior_point
from arrcoc_sam.quality.degradations import degrade, mask_context
from arrcoc_sam.scenes import generate_scene
from arrcoc_sam.scenes.generator import MAX_NODES
from arrcoc_sam.training.batches import PromptBatch

SIDE = 256
"""Of the scenes in pixels, where :data:`phases.SIDES` names no other."""

FOREIGN = 2
"""Masks of somebody else's making that come with each scene."""

CHUNK = 50
"""Scenes that a process draws at a time."""

DEPTH = 3
"""Nodes that a pixel lies in, at most: whole, part, subpart."""

LEAST_CELLS = 4
"""Smallest target, in cells of the decoder's low resolution."""


class Drawn(NamedTuple):
    """n scenes as they are handed over, of a side of S pixels."""

    images: np.ndarray
    """(n, S, S, 3) uint8."""
    labels: np.ndarray
    """(n, S, S) uint8: the innermost node at each pixel, plus one."""
    chains: np.ndarray
    """(n, MAX_NODES + 1, DEPTH) int8: for each label its node and the nodes around it, -1 where there is none."""
    foreign: np.ndarray
    """(n, FOREIGN, S, S / 8) uint8: masks that mean a node and are wrong in some way, eight pixels a byte."""
    foreign_nodes: np.ndarray
    """(n, FOREIGN) int8: what they mean."""
    foreign_xy: np.ndarray
    """(n, FOREIGN, 2) float32: the middle of their inside."""


def draw_chunk(style: str, seeds: Sequence[int]) -> Drawn:
    """Some scenes with foreign masks; what is pasted comes from the scene before."""
    count, side = len(seeds), SIDES.get(style, SIDE)
    drawn = Drawn(
        np.zeros((count, side, side, 3), np.uint8),
        np.zeros((count, side, side), np.uint8),
        np.full((count, MAX_NODES + 1, DEPTH), -1, np.int8),
        np.zeros((count, FOREIGN, side, side // 8), np.uint8),
        np.full((count, FOREIGN), -1, np.int8),
        np.zeros((count, FOREIGN, 2), np.float32),
    )
    donors: Sequence[np.ndarray] = ()
    for row, seed in enumerate(seeds):
        scene, rng = generate_scene(seed, side, style=style), np.random.default_rng([seed, 1])
        drawn.images[row], drawn.labels[row] = scene.image, scene.labels
        for node in range(len(scene)):
            around, place = node, 0
            while around >= 0:
                drawn.chains[row, node + 1, place] = around
                around, place = int(scene.parents[around]), place + 1
        masks = scene.masks
        for place, node in enumerate(rng.permutation(len(masks))[:FOREIGN]):
            context = mask_context(masks, int(node), donors)
            kinds = (None, *context.kinds)
            kind, severity = kinds[int(rng.integers(len(kinds)))], 1.0 - float(rng.random())
            made = masks[node] if kind is None else degrade(masks[node], kind, severity, context=context, seed=seed)
            drawn.foreign[row, place] = np.packbits(made, axis=1)
            drawn.foreign_nodes[row, place] = node
            drawn.foreign_xy[row, place] = largest_interior_point(made).numpy()
        donors = list(masks[rng.permutation(len(masks))[:3]])
    return drawn


class DeviceScenes:
    """A stock of scenes on a device that grows while it is drawn from.

    Args:
        seeds: Of each style.
        shares: Of the batches' images, by style.
        device: Where the stock lies.
        workers: Processes that draw.
        first: Scenes to wait for.
    """

    def __init__(
        self,
        seeds: Mapping[str, range],
        shares: Mapping[str, float],
        device: torch.device | str,
        *,
        workers: int,
        first: int,
    ) -> None:
        total = sum(len(each) for each in seeds.values())
        self.device, self._shares = torch.device(device), dict(shares)
        self._stock = {style: empty(len(each), SIDES.get(style, SIDE), device) for style, each in seeds.items()}
        self._copying = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        if self._copying is not None:  # beside the training's own work, once the stock is made
            torch.cuda.synchronize(self.device)
        self._ready = dict.fromkeys(seeds, 0)
        self._pool = ProcessPoolExecutor(workers, get_context("spawn"), start_worker)
        self._chunks = _chunks(seeds)
        self._error: BaseException | None = None
        self._filling = Thread(target=self._fill, args=(workers,), daemon=True)
        self._filling.start()
        wanted = [style for style, each in seeds.items() if len(each)]
        while len(self) < min(first, total) or not all(self._ready[style] for style in wanted):
            self._filling.join(0.1)
            if self._error is not None:
                self.close()
                self._check()

    def __len__(self) -> int:
        """Scenes that are there."""
        return sum(self._ready.values())

    def close(self) -> None:
        """Draw no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _check(self) -> None:
        if self._error is not None:
            raise RuntimeError("a process that draws scenes failed") from self._error

    def _fill(self, workers: int) -> None:
        """Copies what processes have drawn, as it comes; only so many chunks wait at a time."""
        try:
            pending = {self._pool.submit(draw_chunk, *chunk): chunk[0] for chunk in _some(self._chunks, 2 * workers)}
            while pending:
                done = next(as_completed(pending))
                style, drawn = pending.pop(done), done.result()
                begin = self._ready[style]
                with torch.cuda.stream(self._copying):
                    for stock, part in zip(self._stock[style], drawn, strict=True):
                        stock[begin : begin + len(part)].copy_(torch.from_numpy(part))
                if self._copying is not None:
                    self._copying.synchronize()
                self._ready[style] += len(drawn.images)
                for chunk in _some(self._chunks, 1):
                    pending[self._pool.submit(draw_chunk, *chunk)] = chunk[0]
        except RuntimeError as error:
            if "shutdown" not in str(error):
                self._error = error
        except BaseException as error:  # told to whoever draws next
            self._error = error

    def draw(self, look: Look, generator: torch.Generator) -> PromptBatch:
        """A batch of what is there now.

        Args:
            look: What it looks like.
            generator: Its chance, on the stock's device.
        """
        self._check()
        parts, ends = [], np.cumsum(list(self._shares.values()))
        counts = np.diff((look.num_images * ends / ends[-1]).round().astype(int), prepend=0)
        for style, count in zip(self._shares, counts.tolist(), strict=True):
            if count:
                more = count + -(-count // 4)  # some windows show nothing: they are left out
                some = torch.randint(self._ready[style], (more,), device=self.device, generator=generator)
                scenes = Drawn(*(part[some] for part in self._stock[style]))
                parts.append(cut(scenes, replace(look, num_images=count), generator))
        return joined(parts)


def empty(count: int, side: int, device: torch.device | str) -> Drawn:
    """Room for so many scenes of a side."""
    kinds = (
        ((side, side, 3), torch.uint8),
        ((side, side), torch.uint8),
        ((MAX_NODES + 1, DEPTH), torch.int8),
        ((FOREIGN, side, side // 8), torch.uint8),
        ((FOREIGN,), torch.int8),
        ((FOREIGN, 2), torch.float32),
    )
    return Drawn(*(torch.zeros(count, *shape, dtype=dtype, device=device) for shape, dtype in kinds))  # type: ignore[arg-type]


def joined(parts: Sequence[PromptBatch]) -> PromptBatch:
    """Batches as one, their images one after another."""
    columns = {name: [getattr(part, name) for part in parts] for name in parts[0].state()}
    starts = np.cumsum([0, *(len(part.images) for part in parts)])
    columns["image_index"] = [index + int(start) for index, start in zip(columns["image_index"], starts, strict=False)]
    kept = parts[0].pause_chance
    return PromptBatch(**{name: kept if name == "pause_chance" else torch.cat(all_) for name, all_ in columns.items()})


@dataclass(frozen=True)
class Look:
    """What batches look like.

    Attributes:
        num_images: B.
        num_targets: The most targets an image.
        image_size: Side of the model's frame.
        num_clicks: Rounds after the first.
        given: Share of the images one of whose targets is asked for by a foreign mask, where a window shows one.
        crop_probability: Share of the images that are cropped.
        smallest_crop: Side of the smallest crop.
        longest: The longest window, in sides of its shorter side; 1: all are square, nothing is padded.
        augment: Whether images are cropped, mirrored and recoloured at all.
    """

    num_images: int
    num_targets: int
    image_size: int
    num_clicks: int
    given: float = 0.0
    crop_probability: float = 0.5
    smallest_crop: float = 0.45
    longest: float = 1.7
    augment: bool = True


class Windows(NamedTuple):
    """Where n windows lie in their scenes, and what of the frame shows them."""

    sides: Tensor
    """(n, 2) width and height in pixels of the scene."""
    corners: Tensor
    """(n, 2) x and y of the upper left one."""
    mirrored: Tensor
    """(n,) whether left and right are exchanged."""
    scale: Tensor
    """(n,) pixels of the scene in one of the frame, whose side is the window's longer one."""
    x: Tensor
    """(n, S) where the frame's columns lie in the scene, in pixels from its left edge."""
    y: Tensor
    """(n, S) where its rows lie."""
    shown: Tensor
    """(n, S, S) what is no padding."""

    def take(self, rows: Tensor) -> Windows:
        """Some of them."""
        return Windows(*(part[rows] for part in self))

    def seen(self, maps: Tensor) -> Tensor:
        """(n, S, S), what maps (n, s, s) hold at the frame's pixels, to the nearest; 0 on padding."""
        every = torch.arange(len(maps), device=maps.device)[:, None, None]
        columns, rows = (places.floor().long().clamp(0, maps.shape[-1] - 1) for places in (self.x, self.y))
        return maps[every, rows[:, :, None], columns[:, None, :]].masked_fill(~self.shown, 0)

    def to_frame(self, points_xy: Tensor) -> Tensor:
        """(n, 2) pixel indices of the scene as those of the frame."""
        places = points_xy + 0.5 - self.corners
        x = torch.where(self.mirrored, self.sides[:, 0] - places[:, 0], places[:, 0])
        return torch.stack([x, places[:, 1]], dim=1) / self.scale[:, None] - 0.5

    def hold(self, points_xy: Tensor) -> Tensor:
        """(n,) whether the windows show these pixels of the scene."""
        places = points_xy + 0.5 - self.corners
        return ((places >= 0) & (places < self.sides)).all(dim=1)


def cut(scenes: Drawn, look: Look, generator: torch.Generator) -> PromptBatch:
    """A batch of scenes, more of them than it has images: those in whose window nothing can be asked for are left out.

    Args:
        scenes: As tensors.
        look: What the batch looks like.
        generator: The chance.
    """
    images, labels, chains, foreign, foreign_nodes, foreign_xy = (torch.as_tensor(part) for part in scenes)
    device, frame = labels.device, look.image_size

    def chance(*shape: int) -> Tensor:
        return torch.rand(*shape, device=device, generator=generator)

    windows = draw_windows(len(labels), labels.shape[-1], look, device, generator)
    inner, chains = windows.seen(labels).long(), chains.long()
    areas = areas_of_nodes(inner, chains)
    usable = areas >= 4 * LEAST_CELLS
    kept = usable.any(dim=1).nonzero()[: look.num_images, 0]
    windows, inner, chains, areas, usable = windows.take(kept), inner[kept], chains[kept], areas[kept], usable[kept]
    count, targets = len(kept), look.num_targets

    # usable nodes in random order, again where there are fewer; the first may be one that a foreign mask means
    order = torch.where(usable[:, :MAX_NODES], chance(count, MAX_NODES), -1.0).argsort(dim=1, descending=True)
    nodes = order.gather(1, torch.arange(targets, device=device).remainder(usable.sum(dim=1, keepdim=True)))
    pick = (FOREIGN * chance(count)).long()
    meaning, middles = foreign_nodes[kept, pick].long(), foreign_xy[kept, pick]
    shapes = windows.seen(unpacked(foreign[kept, pick]))
    possible = windows.hold(middles) & (shapes.flatten(1).sum(dim=1) >= 4 * LEAST_CELLS)
    possible &= (meaning >= 0) & usable.gather(1, meaning.clamp(min=0)[:, None])[:, 0]
    given = possible & (chance(count) < look.given)
    nodes[:, 0] = torch.where(given, meaning, nodes[:, 0])

    # what is in each target, a click in it, and what the click may mean
    tree = chains.gather(1, inner.flatten(1)[:, :, None].expand(-1, -1, DEPTH))  # (B, frame², DEPTH)
    masks = (tree[:, None] == nodes[:, :, None, None]).any(dim=3)  # (B, n, frame²)
    clicked = uniform_place(masks.flatten(0, 1), chance(count * targets)).reshape(count, targets)
    meant, weight = meant_by_clicks(tree, clicked, areas, usable, frame)
    coverage = coverage_of(masks, frame)

    def of_first(values: Tensor) -> Tensor:  # (B, ...) to (B, n, ...): 0 for all but the first target
        spread = values.new_zeros(count, targets, *values.shape[1:])
        spread[given, 0] = values[given]
        return spread

    prompts = 10 * (2 * coverage_of(shapes.flatten(1)[:, None], frame)[:, 0] - 1)
    every = {
        "image_index": torch.arange(count, device=device)[:, None].expand(-1, targets),
        "targets": coverage,
        "points_xy": torch.stack([clicked.remainder(frame), clicked.div(frame, rounding_mode="floor")], dim=2).float(),
        "meant": meant,
        "meant_chance": weight,
        "given": of_first(given),
        "given_logits": of_first(prompts),
        "given_xy": of_first(windows.to_frame(middles)),
    }
    good = ((coverage > 0.5).flatten(2).any(dim=2) & (weight[:, :, 0] > 0)).flatten()
    total = int(good.sum())
    return PromptBatch(
        images=pictures(images[kept], windows, look, generator),
        valid=F.avg_pool2d(windows.shown.float(), 2) >= 0.5,
        boxes_xyxy=mask_boxes(masks.flatten(0, 1)[good].unflatten(1, (frame, frame))).float(),
        box_chance=chance(total),
        box_shift=torch.randn(total, 4, device=device, generator=generator),
        click_chance=chance(total, look.num_clicks, 4),
        pause_chance=0.0,
        **{name: values.flatten(0, 1)[good] for name, values in every.items()},
    )


def draw_windows(count: int, scene_side: int, look: Look, device: torch.device, generator: torch.Generator) -> Windows:
    """Some of them cropped, half of them longer in one direction, half of them mirrored."""

    def chance(*shape: int) -> Tensor:
        return torch.rand(*shape, device=device, generator=generator)

    cropped = (chance(count) < look.crop_probability) & look.augment
    side = torch.where(cropped, look.smallest_crop + (1 - look.smallest_crop) * chance(count), 1.0)
    longer = (chance(count) < 0.5) & look.augment
    shorter = side / torch.where(longer, 1 + (look.longest - 1) * chance(count), 1.0)
    wide = chance(count) < 0.5
    sides = torch.stack([torch.where(wide, side, shorter), torch.where(wide, shorter, side)], dim=1)
    sides = (sides * scene_side).round().clamp(min=8)
    corners = ((scene_side - sides + 1) * chance(count, 2)).floor()
    mirrored = (chance(count) < 0.5) & look.augment
    scale = sides.amax(dim=1) / look.image_size
    across = (torch.arange(look.image_size, device=device) + 0.5) * scale[:, None]  # in pixels of the window
    x = torch.where(mirrored[:, None], sides[:, :1] - across, across) + corners[:, :1]
    shown = (across < sides[:, :1])[:, None, :] & (across < sides[:, 1:])[:, :, None]
    return Windows(sides, corners, mirrored, scale, x, across + corners[:, 1:], shown)


def areas_of_nodes(inner: Tensor, chains: Tensor) -> Tensor:
    """(n, MAX_NODES + 1) pixels of each node, what lies in it included, from labels (n, S, S); the last is none."""
    pixels = torch.zeros(len(inner), MAX_NODES + 1, device=inner.device)
    pixels.scatter_add_(1, inner.flatten(1), torch.ones((), device=inner.device).expand(inner.flatten(1).shape))
    areas = torch.zeros_like(pixels)
    areas.scatter_add_(1, column_of(chains).flatten(1), pixels[:, :, None].expand(-1, -1, DEPTH).flatten(1))
    areas[:, MAX_NODES] = 0
    return areas


def column_of(nodes: Tensor) -> Tensor:
    """The column of each node in what has one a node: the last for -1, which is none."""
    return nodes.remainder(MAX_NODES + 1)


def meant_by_clicks(tree: Tensor, clicked: Tensor, areas: Tensor, usable: Tensor, frame: int) -> tuple[Tensor, Tensor]:
    """What clicks may mean, the likeliest first: masks (B, n, DEPTH, g, g) and chances (B, n, DEPTH).

    Args:
        tree: (B, S², DEPTH), the nodes that each pixel lies in.
        clicked: (B, n) pixels.
        areas: (B, MAX_NODES + 1), of each node.
        usable: Likewise, whether it can be asked for.
        frame: S.
    """
    under = tree.gather(1, clicked[:, :, None].expand(-1, -1, DEPTH))
    columns = column_of(under).flatten(1)
    whole = torch.stack([(tree[:, None] == under[:, :, None, None, which]).any(dim=3) for which in range(DEPTH)], dim=2)
    masks = coverage_of(whole.flatten(1, 2), frame).unflatten(1, (-1, DEPTH)) > 0.5
    means = usable.gather(1, columns).reshape(under.shape) & masks.flatten(3).any(dim=3)
    weight = means / areas.gather(1, columns).reshape(under.shape).clamp(min=1)
    weight = weight / weight.sum(dim=2, keepdim=True).clamp(min=1e-12)
    weight, order = weight.sort(dim=2, descending=True)
    masks = masks.gather(2, order[..., None, None].expand_as(masks))
    return masks & (weight > 0)[..., None, None], weight


def unpacked(masks: Tensor) -> Tensor:
    """(n, s, s) bool, of eight pixels a byte."""
    bits = 2 ** torch.arange(7, -1, -1, device=masks.device, dtype=torch.uint8)
    return ((masks[..., None] & bits) > 0).flatten(2)


def pictures(images: Tensor, windows: Windows, look: Look, generator: torch.Generator) -> Tensor:
    """(B, 3, S, S) float32 in [0, 255]: the windows, bilinearly, recoloured and padded."""
    device, count = images.device, len(images)
    grid_x, grid_y = (2 * places / images.shape[1] - 1 for places in (windows.x, windows.y))
    grid = torch.stack(torch.broadcast_tensors(grid_x[:, None, :], grid_y[:, :, None]), dim=3)
    pixels = F.grid_sample(
        images.permute(0, 3, 1, 2).float(), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    if look.augment:
        order = torch.rand(count, 3, device=device, generator=generator).argsort(dim=1)
        pixels = pixels.gather(1, order[:, :, None, None].expand_as(pixels))
        gain = 0.7 + 0.6 * torch.rand(count, 3, 1, 1, device=device, generator=generator)
        offset = 50 * torch.rand(count, 3, 1, 1, device=device, generator=generator) - 25
        changed = torch.rand(count, 1, 1, 1, device=device, generator=generator) < 0.5
        pixels = torch.where(changed, (pixels * gain + offset).clamp(0, 255), pixels)
    padding = pixels.new_tensor((123.675, 116.28, 103.53))[:, None, None]
    return torch.where(windows.shown[:, None], pixels, padding)


def coverage_of(masks: Tensor, frame: int) -> Tensor:
    """(B, n, frame / 2, frame / 2): the share of each cell that (B, n, frame²) masks cover."""
    return F.avg_pool2d(masks.unflatten(2, (frame, frame)).float(), 2)


def uniform_place(masks: Tensor, chance: Tensor) -> Tensor:
    """A pixel of each flat mask, each with equal chance; 0 of an empty one."""
    running = masks.cumsum(dim=1, dtype=torch.int32)
    wanted = (chance * running[:, -1]).int().clamp(max=running[:, -1] - 1)
    return torch.searchsorted(running, wanted[:, None], right=True)[:, 0].clamp(max=masks.shape[1] - 1)


def _chunks(seeds: Mapping[str, range]) -> Iterator[tuple[str, range]]:
    """Chunks of all styles, in proportion as they go."""
    parts = [
        ((begin + CHUNK / 2) / len(each), style, each[begin : begin + CHUNK])
        for style, each in seeds.items()
        for begin in range(0, len(each), CHUNK)
    ]
    for _, style, chunk in sorted(parts, key=lambda part: part[0]):
        yield style, chunk


def _some(chunks: Iterator[tuple[str, range]], count: int) -> Iterator[tuple[str, range]]:
    for _, chunk in zip(range(count), chunks, strict=False):
        yield chunk
