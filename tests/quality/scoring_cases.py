"""A small data set of masks in each of its forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from arrcoc_sam.masks import encode_rle

SIZES = [(64, 96), (80, 50), (64, 96), (48, 48)]
NUM_MASKS = 11


def masks_of(image: int) -> list[np.ndarray]:
    """Squares, an empty mask and a full one."""
    height, width = SIZES[image % len(SIZES)]
    found = []
    for place in range(3 if image else 2):
        mask = np.zeros((height, width), dtype=bool)
        mask[6 * place + 3 : 6 * place + 21, 5 * place + 2 : 5 * place + 24] = True
        found.append(mask)
    if image == 1:
        found[0][:], found[1][:] = False, True
    return found


def write_images(folder: Path, num_images: int = len(SIZES)) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for image, (height, width) in enumerate(SIZES[:num_images]):
        pixels = np.random.default_rng(image).integers(0, 256, (height, width, 3), dtype=np.uint8)
        names.append(f"{image}.png")
        Image.fromarray(pixels).save(folder / names[-1])
    return names


def write_coco(folder: Path, num_images: int = len(SIZES)) -> Path:
    """Four images, eleven masks, in an order that is not that of the images."""
    names = write_images(folder, num_images)
    images = [
        {"id": 50 - image, "file_name": name, "height": SIZES[image][0], "width": SIZES[image][1]}
        for image, name in enumerate(names)
    ]
    annotations: list[dict[str, Any]] = [
        {"id": 100 + 10 * place + image, "image_id": 50 - image, "category_id": place % 2, "segmentation": rle}
        for image in range(len(names))
        for place, rle in enumerate(encode_rle(np.stack(masks_of(image))))
    ]
    annotations.sort(key=lambda annotation: annotation["id"])
    annotations[-1]["iscrowd"] = 1
    document = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}],
    }
    path = folder / "masks.json"
    path.write_text(json.dumps(document))
    return path


def write_parquet(folder: Path) -> Path:
    names = write_images(folder)
    rows = [
        {
            "id": f"{image}-{place}",
            "image": name,
            "height": rle["size"][0],
            "width": rle["size"][1],
            "counts": rle["counts"],
        }
        for image, name in enumerate(names)
        for place, rle in enumerate(encode_rle(np.stack(masks_of(image))))
    ]
    path = folder / "masks.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_folder(folder: Path) -> Path:
    names = write_images(folder / "images")
    for image, name in enumerate(names):
        for place, mask in enumerate(masks_of(image)):
            path = folder / "masks" / Path(name).stem / f"square-{place}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask * np.uint8(255)).save(path)
    return folder
