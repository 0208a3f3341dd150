"""A data set of any number of masks for the benchmarks of `score`: few pictures, many images that show them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from arrcoc_sam.masks import encode_rle
from arrcoc_sam.scenes import generate_scene

SIZE, NUM_PICTURES = 128, 40
FIRST_SEED = 8_900_000


def write_dataset(folder: Path, num_masks: int, *, masks_an_image: int = 10) -> Path:
    """A COCO file whose images share forty files, so that a large one costs no disk; masks of an image may repeat."""
    folder.mkdir(parents=True, exist_ok=True)
    runs: list[list[dict[str, object]]] = []
    for number in range(NUM_PICTURES):
        scene = generate_scene(FIRST_SEED + number, SIZE)
        Image.fromarray(scene.image).save(folder / f"{number}.png")
        found = [mask for mask in scene.masks if mask.any()] or [np.ones((SIZE, SIZE), dtype=bool)]
        runs.append(encode_rle(np.stack(found)))
    path = folder / f"{num_masks}.json"
    with path.open("w") as file:
        images = range(-(-num_masks // masks_an_image))
        records = ({"id": i, "file_name": f"{i % NUM_PICTURES}.png", "height": SIZE, "width": SIZE} for i in images)
        file.write(f'{{"images": [{", ".join(map(json.dumps, records))}],\n"annotations": [')
        for mask in range(num_masks):
            image, place = divmod(mask, masks_an_image)
            own = runs[image % NUM_PICTURES]
            record = {"id": mask, "image_id": image, "segmentation": own[place % len(own)]}
            file.write(f"{',' if mask else ''}\n{json.dumps(record)}")
        file.write("]}\n")
    return path
