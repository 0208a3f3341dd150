"""Masks that a table of scores does not have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arrcoc_sam.datasets.coco_masks import CocoMasks
from arrcoc_sam.datasets.mask_index import MaskEntry, MaskIndex
from arrcoc_sam.quality import unscored
from arrcoc_sam.quality.scoring.plan import PLAN_KEY
from arrcoc_sam.quality.unscored import NOT_RECORDED, listed_errors, unscored_masks


class Many(CocoMasks):
    """A data set of many masks, one an image; the first has no id."""

    def __init__(self, ids: list[Any]) -> None:
        super().__init__(Path("many.json"), images=None)
        self.ids = ids

    def fill(self, index: MaskIndex) -> None:
        for number, mask_id in enumerate(self.ids):
            image = index.add_image(number, f"{number}.png")
            index.add(MaskEntry(mask_id, image, "cat", counts="a", error=None if number else "no id"))


def test_errors_may_be_listed_with_their_class(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1], "image_id": [1]}), tmp_path / "s.parquet")
    listed = tmp_path / "s.errors.csv"
    listed.write_text("id,image_id,image,error\n2,1,a.png,empty\n")
    assert listed_errors(tmp_path / "s.parquet")["category"].tolist() == [NOT_RECORDED]
    listed.write_text("id,image_id,image,error,category\n2,1,a.png,empty,cat\n3,1,a.png,empty,\n")
    categories = listed_errors(tmp_path / "s.parquet")["category"]
    assert categories[0] == "cat"
    assert categories.isna().tolist() == [False, True]


@pytest.mark.parametrize("kind", [int, str])
def test_masks_without_a_score_are_found_part_by_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Callable[[int], Any]
) -> None:
    monkeypatch.setattr(unscored, "_ROWS", 8)
    numbers = range(1, 4_000)
    dataset = Many([None, *map(kind, numbers)])
    scored = [number for number in numbers if number % 100]
    table = tmp_path / "s.parquet"
    scores = pa.table({"id": [kind(number) for number in scored], "image_id": scored})
    pq.write_table(scores.replace_schema_metadata({PLAN_KEY: "{}"}), table)
    found = unscored_masks(table, dataset, None)
    assert found["id"].tolist() == [None, *map(kind, range(100, 4_000, 100))]
    assert found["image_id"].tolist() == list(range(0, 4_000, 100))
    assert found["error"][0] == "no id"
    assert found["error"][1:].str.startswith("it has no score in s.parquet").all()
