"""The nested-mask pack (see README.md) as a COCO file with the list "hierarchies"."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def pack_to_coco(manifest: dict[str, Any]) -> dict[str, Any]:
    """The pack's manifest in COCO's words; ids stay the pack's own, and so do the paths of the pictures.

    Of each triple's clicks the first is kept. Labels become categories; masks that have none, those of bsds500, are
    all "region".
    """
    labels = sorted({mask["label"] or "region" for mask in manifest["masks"]})
    category = {label: number for number, label in enumerate(labels, start=1)}
    return {
        "info": {"description": manifest["info"]["name"], "version": str(manifest["info"]["version"])},
        "images": [
            {"id": image["id"], "file_name": image["file"], "height": image["height"], "width": image["width"]}
            for image in manifest["images"]
        ],
        "categories": [{"id": number, "name": label} for label, number in category.items()],
        "annotations": [
            {
                "id": mask["id"],
                "image_id": mask["image_id"],
                "category_id": category[mask["label"] or "region"],
                "iscrowd": 0,
                "area": mask["area"],
                "bbox": mask["bbox"],
                "segmentation": mask["segmentation"],
            }
            for mask in manifest["masks"]
        ],
        "hierarchies": [
            {
                "id": triple["id"],
                "image_id": triple["image_id"],
                **{level: triple["masks"].get(level) for level in ("whole", "part", "subpart")},
                "point": triple["point"],
            }
            for triple in manifest["triples"]
        ],
    }


def convert_pack(pack: Path, target: Path) -> Path:
    """Write the pack's COCO file; the pictures stay where they are."""
    manifest = json.loads((pack / "manifest.json").read_text())
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(pack_to_coco(manifest)))
    return target


def image_sources(pack: Path) -> dict[str, str]:
    """Which data set each image of the pack comes from, by id."""
    manifest = json.loads((pack / "manifest.json").read_text())
    return {image["id"]: image["source"] for image in manifest["images"]}
