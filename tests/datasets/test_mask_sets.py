from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from arrcoc_sam.datasets import json_stream
from arrcoc_sam.datasets.folder import read_mask_file
from arrcoc_sam.datasets.json_stream import stream_json
from arrcoc_sam.datasets.mask_forms import open_masks
from arrcoc_sam.datasets.mask_index import MaskEntry, MaskIndex
from arrcoc_sam.errors import DataError, ImageReadError, ImageTooLargeError, InputError, OutputError
from arrcoc_sam.masks import decode_rle, encode_rle


def square(height: int = 8, width: int = 10, top: int = 1, left: int = 2, side: int = 4) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


@dataclass
class Chosen:
    """Masks that stay, and a field for each."""

    kept: set[Any]
    images: set[Any] | None = None
    field_types: pa.Schema = field(default_factory=lambda: pa.schema({"sam_quality": pa.float32()}))

    def keeps(self, mask_id: Any) -> bool:
        return mask_id in self.kept

    def keeps_image(self, image_id: Any) -> bool:
        return self.images is None or image_id in self.images

    def fields(self, mask_id: Any) -> Mapping[str, Any]:
        return {"sam_quality": None if mask_id == 12 else 0.5}


def listed(path: Path, tmp_path: Path, *, num_masks: int = 100) -> list[pa.Table]:
    target = tmp_path / "index.sqlite"
    target.unlink(missing_ok=True)
    with MaskIndex(target, name=str(path)) as index:
        open_masks(path).fill(index)
        return list(index.parts(num_masks))


def rows(path: Path, tmp_path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pa.concat_tables(listed(path, tmp_path)).to_pylist()
    return found


COCO: dict[str, Any] = {
    "info": {"year": 2026, "note": "größer"},
    "images": [
        {"id": 2, "file_name": "b.png", "height": 8, "width": 10, "license": 1},
        {"id": 1, "file_name": "a.png", "height": 8, "width": 10},
        {"id": 3, "file_name": "", "height": 8, "width": 10},
    ],
    "annotations": [
        {"id": 10, "image_id": 1, "category_id": 7, "segmentation": [[2, 1, 6, 1, 6, 5, 2, 5]], "bbox": [2, 1, 4, 4]},
        {"id": 11, "image_id": 2, "category_id": 7, "segmentation": encode_rle(square()), "iscrowd": 1},
        {"id": 12, "image_id": 1, "category_id": 8, "segmentation": {"size": [8, 10], "counts": [80]}},
        {"id": 13, "image_id": 2, "category_id": 7, "segmentation": {"size": [8, 10], "counts": [70]}},
        {"id": 14, "image_id": 9, "category_id": 7, "segmentation": [[2, 1, 6, 1, 6, 5, 2, 5]]},
        {"id": 15, "image_id": 3, "category_id": 7, "segmentation": [[2, 1, 6, 1, 6, 5, 2, 5]]},
        {"id": 16, "image_id": 2, "category_id": 7, "segmentation": {"size": [10, 8], "counts": [80]}},
        {"image_id": 2, "segmentation": []},
    ],
    "categories": [{"id": 7, "name": "cat"}, {"id": 8, "name": "dog"}],
}


@pytest.fixture
def coco(tmp_path: Path) -> Callable[..., Path]:
    def write(**changes: Any) -> Path:
        path = tmp_path / "masks.json"
        path.write_text(json.dumps({**COCO, **changes}, ensure_ascii=False))
        return path

    return write


def whole(path: Path) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, Iterator) else value for key, value in stream_json(path)}


# --- JSON value by value --------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(document=st.dictionaries(st.text(), json_values, max_size=5), chunk=st.integers(1, 40), indent=st.booleans())
def test_streaming_reads_what_json_reads(
    document: dict[str, Any], chunk: int, indent: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "stream.json"
    path.write_text(json.dumps(document, indent=2 if indent else None), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_CHUNK", chunk)
        assert whole(path) == document


@settings(deadline=None)
@given(cut=st.integers(0, 60))
def test_a_document_that_is_cut_off(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.json"
    text = '{"a": [1, {"b": "c"}, -2.5e3], "d": {"e": [true]}, "f": "gh"}'
    path.write_text(text[:cut])
    with pytest.raises(DataError, match=r"cut\.json is no JSON"):
        whole(path)


def test_bytes_that_are_no_text_far_into_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "_CHUNK", 1 << 10)
    path = tmp_path / "a.json"
    path.write_bytes(b'{"numbers": [' + b"1, " * 20_000 + b'"\xff"]}')
    _, numbers = next(stream := stream_json(path))
    with pytest.raises(DataError, match="can't be read as JSON"):
        list(numbers)
    stream.close()


def test_lists_need_not_be_read_to_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": [1, 2, [3]], "b": [], "c": 4}')
    assert [key for key, _ in stream_json(path)] == ["a", "b", "c"]
    path.write_text("[1]")
    with pytest.raises(DataError, match="a JSON dictionary"):
        next(stream_json(path))


# --- what the forms have in common ----------------------------------------------------------------------------------


def test_parts_hold_whole_images_in_order(tmp_path: Path) -> None:
    with MaskIndex(tmp_path / "index", name="set") as index:
        numbers = [index.add_image(f"{name}.png", f"{name}.png") for name in "abcd"]
        for mask_id, image in enumerate([2, 0, 1, 0, 2, 2, 3]):
            index.add(MaskEntry(mask_id, numbers[image], counts="x"))
        parts = list(index.parts(2))
        assert len(index) == 7
    assert [part["image"].to_pylist() for part in parts] == [["a.png"] * 2, ["b.png", *["c.png"] * 3], ["d.png"]]
    assert [part["id"].to_pylist() for part in parts] == [[1, 3], [2, 0, 4, 5], [6]]


@pytest.mark.parametrize(
    ("ids", "words"), [([1, 1], "id 1 occurs twice"), ([1, "1"], "numbers and others strings"), ([2**70], "64 bits")]
)
def test_ids_that_can_t_name_results(tmp_path: Path, ids: list[Any], words: str) -> None:
    def fill(index: MaskIndex) -> None:
        for mask_id in ids:
            index.add(MaskEntry(mask_id, index.add_image(f"{mask_id!r} {len(index)}", "a.png"), counts="x"))
        list(index.parts(2))

    with MaskIndex(tmp_path / "index", name="set") as index, pytest.raises(DataError, match=words):
        fill(index)


@pytest.mark.usefixtures("as_at_run_time")
def test_what_is_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").touch()
    for path, words in {"no.json": "does not exist", "empty": "holds no data set", "a.txt": "no known form"}.items():
        with pytest.raises(DataError, match=words):
            open_masks(tmp_path / path)
    with pytest.raises(InputError, match=r"the data set is a DataFrame of shape \(1, 1\).*to_parquet"):
        open_masks(pd.DataFrame({"id": [1]}))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="is no folder"):
        open_masks(tmp_path / "a.txt", images=tmp_path / "nowhere")


# --- COCO -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [list(COCO), list(reversed(COCO))])
def test_coco_masks_by_image_with_what_is_wrong_with_them(
    coco: Callable[..., Path], tmp_path: Path, order: list[str]
) -> None:
    path = tmp_path / "masks.json"
    path.write_text(json.dumps({key: COCO[key] for key in order}))
    found = rows(path, tmp_path)
    assert [row["id"] for row in found] == [11, 13, 16, None, 10, 12, 14, 15]
    good = {row["id"]: row for row in found if row["error"] is None}
    assert sorted(good) == [10, 11, 12]
    for mask_id, mask in ((10, square()), (11, square()), (12, np.zeros((8, 10)))):
        row = good[mask_id]
        drawn = decode_rle({"size": [row["height"], row["width"]], "counts": row["counts"]})
        np.testing.assert_array_equal(drawn.numpy(), mask)
    assert [good[i]["crowd"] for i in (10, 11, 12)] == [False, True, False]
    assert [good[i]["category"] for i in (10, 11, 12)] == ["cat", "cat", "dog"]
    errors = {row["id"]: row["error"] for row in found if row["error"]}
    assert "add up to 70" in errors[13]
    assert "image 9" in errors[14]
    assert "file_name" in errors[15]
    assert "other way round" in errors[16]
    assert "number 8" in errors[None]


def test_a_coco_file_is_written_again_with_all_else_in_it(coco: Callable[..., Path], tmp_path: Path) -> None:
    path = coco(hierarchies=[{"id": 1, "image_id": 1, "whole": 10, "part": 12}, {"id": 2, "whole": 10, "part": 11}])
    open_masks(path).rewrite(tmp_path / "out.json", Chosen({10, 12}, images={1}))
    written = json.loads((tmp_path / "out.json").read_text())
    before = json.loads(path.read_text())
    assert list(written) == list(before)
    assert written["info"] == before["info"]
    assert written["images"] == before["images"][1:2]
    assert written["annotations"] == [
        {**before["annotations"][0], "sam_quality": 0.5},
        {**before["annotations"][2], "sam_quality": None},
    ]
    assert [triple["id"] for triple in written["hierarchies"]] == [1]


@pytest.mark.parametrize(("images", "stays"), [({1}, False), ({1, 2}, True)])
def test_annotations_without_an_id_go_with_their_images(
    coco: Callable[..., Path], tmp_path: Path, images: set[int], stays: bool
) -> None:
    path = coco()
    open_masks(path).rewrite(tmp_path / "out.json", Chosen({10, None}, images=images))
    written = json.loads((tmp_path / "out.json").read_text())["annotations"]
    assert ({"image_id": 2, "segmentation": []} in written) is stays


def test_ids_and_sizes_that_are_written_as_floats(coco: Callable[..., Path], tmp_path: Path) -> None:
    plain = rows(coco(), tmp_path)
    lists = {name: [dict(each) for each in COCO[name]] for name in ("images", "annotations", "categories")}
    for each in (each for name in lists for each in lists[name]):
        each |= {key: float(value) for key, value in each.items() if type(value) is int and key != "iscrowd"}
    path = coco(**lists)
    found = rows(path, tmp_path)
    assert [each | {"error": None} for each in found] == [each | {"error": None} for each in plain]
    assert [each["error"] is None for each in found] == [each["error"] is None for each in plain]
    open_masks(path).rewrite(tmp_path / "out.json", Chosen({10, 12}, images={1}))
    assert [each["id"] for each in json.loads((tmp_path / "out.json").read_text())["annotations"]] == [10, 12]


def test_half_a_character_costs_no_data_set(tmp_path: Path) -> None:
    path = tmp_path / "masks.json"
    images = [COCO["images"][0] | {"file_name": "b\ud800.png"}, COCO["images"][1] | {"note": "\ud800"}]
    categories = [{"id": 7, "name": "cat\ud800"}]
    path.write_text(json.dumps({"images": images, "annotations": COCO["annotations"][:2], "categories": categories}))
    found = {row["id"]: row for row in rows(path, tmp_path)}
    assert (found[10]["error"], found[10]["category"]) == (None, "cat\\ud800")
    assert r"image 2: file_name is 'b\ud800.png', which holds half a character" in found[11]["error"]
    open_masks(path).rewrite(tmp_path / "out.json", Chosen({10}, images={1}))
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert (written["images"], written["categories"]) == (images[1:], categories)


def test_nulls_and_polygons_that_enclose_nothing(tmp_path: Path) -> None:
    ring = [2, 1, 6, 1, 6, 5, 2, 5]
    odd = [
        {"iscrowd": None, "segmentation": [ring]},
        {"segmentation": [[1, 1, 2, 2], ring, [], [3, 3]]},
        {"segmentation": [[1, 1, 2, 2], []]},
        {"segmentation": []},
        {"segmentation": [ring, [1, 2, 3, 4, 5]]},
        {"segmentation": {"size": [8, 10], "counts": "\ud800"}},
        {"segmentation": {"size": [float("inf"), 10], "counts": [80]}},
    ]
    annotations = [{"id": i, "image_id": 1, **each} for i, each in enumerate(odd)]
    path = tmp_path / "masks.json"
    path.write_text(json.dumps({**COCO, "annotations": annotations, "categories": None}))
    found = rows(path, tmp_path)
    assert [row["error"] is None for row in found] == [True, True, False, False, False, False, False]
    for row in found[:2]:
        drawn = decode_rle({"size": [row["height"], row["width"]], "counts": row["counts"]})
        np.testing.assert_array_equal(drawn.numpy(), square())
    assert not found[0]["crowd"]


def test_ids_that_repeat_and_files_that_are_no_coco(coco: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="mask id 10 occurs twice"):
        listed(coco(annotations=COCO["annotations"][:1] * 2), tmp_path)
    with pytest.raises(DataError, match="image id 2 occurs twice"):
        listed(coco(images=COCO["images"][:1] * 2), tmp_path)
    with pytest.raises(DataError, match="COCO's lists"):
        listed(coco(annotations={}), tmp_path)
    path = tmp_path / "masks.json"
    path.write_text('{"images": []}')
    with pytest.raises(DataError, match="no list 'annotations'"):
        listed(path, tmp_path)


# --- a folder of pictures -------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    for name in ("images/a.jpg", "images/deep/b.png", "masks/a.png", "masks/deep/b/dog-1.png", "masks/deep/b/cat.png"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(square() * np.uint8(255)).save(path)
    Image.fromarray(square() * np.uint8(255)).save(root / "masks" / "stray.png")
    return root


def test_a_folder_pairs_masks_with_images(folder: Path, tmp_path: Path) -> None:
    found = rows(folder, tmp_path)
    assert [(row["id"], row["image"], row["category"]) for row in found if row["error"] is None] == [
        ("a", "a.jpg", None),
        ("deep/b/cat", "deep/b.png", "cat"),
        ("deep/b/dog-1", "deep/b.png", "dog"),
    ]
    [stray] = [row for row in found if row["error"]]
    assert f"no image stray.* in {folder / 'images'}" in stray["error"]


def test_a_folder_is_written_again_with_a_link_to_its_images(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "kept"
    open_masks(folder).rewrite(target, Chosen({"a", "deep/b/cat"}))
    again = rows(target, tmp_path)
    assert [row["id"] for row in again] == ["a", "deep/b/cat"]
    assert (target / "images").is_symlink()
    with pytest.raises(OutputError, match="exists"):
        open_masks(folder).rewrite(target, Chosen(set()))


def test_a_mask_of_too_many_pixels(folder: Path) -> None:
    words = r"is 10 x 8 = 0\.0 megapixels; expected at most max_pixels .* Mend: scale picture and mask down"
    with pytest.raises(ImageTooLargeError, match=words):
        read_mask_file(folder / "masks" / "a.png", max_pixels=79)
    assert read_mask_file(folder / "masks" / "a.png", max_pixels=80).shape == (8, 10)


def test_folders_are_found_behind_links(folder: Path, tmp_path: Path) -> None:
    (folder / "masks" / "deep").rename(tmp_path / "elsewhere")
    (folder / "masks" / "deep").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "above").symlink_to(folder / "masks")  # round in circles
    found = [row["id"] for row in rows(folder, tmp_path) if row["error"] is None]
    assert found == ["a", "deep/b/cat", "deep/b/dog-1"]


def test_folders_that_can_t_be_read(folder: Path, tmp_path: Path) -> None:
    Image.fromarray(square() * np.uint8(255)).save(folder / "images" / "a.png")
    with pytest.raises(DataError, match=r"several images a\.\*"):
        listed(folder, tmp_path)
    (tmp_path / "bare" / "masks").mkdir(parents=True)
    with pytest.raises(DataError, match=r"name it as images \(--images\)"):
        listed(tmp_path / "bare", tmp_path)
    (tmp_path / "bare" / "images").mkdir()
    with pytest.raises(DataError, match="no mask"):
        listed(tmp_path / "bare", tmp_path)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "LA", "P", "white first", "I;16"])
@pytest.mark.parametrize("side", [1, 40])
def test_mask_files_of_any_kind(tmp_path: Path, mode: str, side: int) -> None:
    mask = np.kron(square(), np.ones((side, side), dtype=bool))
    if mode == "I;16":
        picture = Image.fromarray(mask.astype(np.uint16) * 700)
    elif mode == "P":
        picture = Image.fromarray(mask.astype(np.uint8), mode="L")
        picture.putpalette([0, 0, 0, 90, 0, 0])
    elif mode == "white first":  # as Pillow's adaptive palettes are
        picture = Image.fromarray((~mask).astype(np.uint8), mode="L")
        picture.putpalette([255, 255, 255, 0, 0, 0])
    else:
        picture = Image.fromarray(mask * np.uint8(255)).convert(mode)
    picture.save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask_file(tmp_path / "mask.png").numpy(), mask)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("colour", [0, 255])
def test_mask_files_that_only_transparency_tells_apart(tmp_path: Path, mode: str, colour: int) -> None:
    path, mask = tmp_path / "mask.png", square()
    if mode == "P":
        picture = Image.fromarray(mask.astype(np.uint8), mode="L")
        picture.putpalette([colour] * 6)
        picture.save(path, transparency=0)
    else:
        drawn = Image.new("L", (10, 8), colour).convert(mode)
        drawn.putalpha(Image.fromarray(mask * np.uint8(200)))
        drawn.save(path)
    np.testing.assert_array_equal(read_mask_file(path).numpy(), mask)
    clear = Image.new("RGBA", (10, 8), (colour, colour, colour, 0))
    clear.save(path)
    assert not read_mask_file(path).any()
    Image.new("RGBA", (10, 8), (colour, colour, colour, 255)).save(path)
    assert read_mask_file(path).float().mean() == (colour > 0)


def test_colours_of_a_mask_file_go_before_its_transparency(tmp_path: Path) -> None:
    path, mask = tmp_path / "mask.png", square()
    picture = Image.fromarray(mask * np.uint8(255)).convert("RGBA")
    picture.putalpha(Image.fromarray(np.arange(80, dtype=np.uint8).reshape(8, 10)))
    picture.save(path)
    np.testing.assert_array_equal(read_mask_file(path).numpy(), mask)


def test_mask_files_that_are_no_masks(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.fromarray(np.arange(80, dtype=np.uint8).reshape(8, 10)).save(path)
    with pytest.raises(DataError, match="more than two values"):
        read_mask_file(path)
    path.write_bytes(path.read_bytes()[:45])
    with pytest.raises(ImageReadError, match="whole PNG"):
        read_mask_file(path)
    with pytest.raises(ImageReadError, match="does not exist"):
        read_mask_file(tmp_path / "no.png")
    for blank in (np.zeros((8, 10), np.uint8), np.full((8, 10), 255, np.uint8)):
        Image.fromarray(blank).save(path)
        np.testing.assert_array_equal(read_mask_file(path).numpy(), blank > 0)


# --- Parquet --------------------------------------------------------------------------------------------------------


def parquet(path: Path, ids: list[Any], **columns: Any) -> Path:
    count = len(ids)
    table = {
        "id": ids,
        "image": [f"{'ab'[i % 2]}.png" for i in range(count)],
        "height": [8] * count,
        "width": [10] * count,
        "counts": [encode_rle(square())["counts"]] * count,
        "note": [f"row {i}" for i in range(count)],
    }
    pq.write_table(pa.table({**table, **columns}), path)
    return path


def test_parquet_rows_by_image(tmp_path: Path) -> None:
    good = encode_rle(square())["counts"]
    path = parquet(
        tmp_path / "a.parquet", [5, 6, 7, 8], counts=[good, "08`2", "1", None], category=["x", "y", None, "x"]
    )
    found = rows(path, tmp_path)
    assert [(row["id"], row["image"], row["category"]) for row in found] == [
        (5, "a.png", "x"),
        (7, "a.png", None),
        (6, "b.png", "y"),
        (8, "b.png", "x"),
    ]
    assert [row["error"] is None for row in found] == [True, False, False, False]
    assert (found[0]["height"], found[0]["width"], found[0]["counts"]) == (8, 10, good)


def test_parquet_folders_and_structures(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    parquet(folder / "0.parquet", ["a", "b"])
    parquet(folder / "1.PARQUET", ["c", None], image=["a.png", "b.png"])
    found = rows(folder, tmp_path)
    assert [row["id"] for row in found] == ["a", "c", "b", None]
    assert "id None" in found[-1]["error"]
    table = pa.table({"id": [1], "image": ["a.png"], "segmentation": [encode_rle(square())]})
    pq.write_table(table, tmp_path / "b.parquet")
    [row] = rows(tmp_path / "b.parquet", tmp_path)
    assert row["counts"] == encode_rle(square())["counts"]


def test_parquet_of_numbers_that_pandas_made_floats(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", [11.0, 12.0, None], height=[8.0, None, 8.0], width=[10.0, 10.0, 10.5])
    found = {row["id"]: row for row in rows(path, tmp_path)}
    assert (found[11]["height"], found[11]["width"], found[11]["error"]) == (8, 10, None)
    assert "the mask's size is [None, 10.0]; expected whole numbers: height, width" in found[12]["error"]
    assert "has the id None" in found[None]["error"]
    open_masks(path).rewrite(tmp_path / "b.parquet", Chosen({11}))
    assert pq.read_table(tmp_path / "b.parquet")["id"].to_pylist() == [11.0]


def test_parquet_of_polygons(tmp_path: Path) -> None:
    table = pa.table({"id": [1], "image": ["a.png"], "segmentation": [[[2.0, 1.0, 6.0, 1.0, 6.0, 5.0]]]})
    pq.write_table(table, tmp_path / "a.parquet")
    [row] = rows(tmp_path / "a.parquet", tmp_path)
    assert "the segmentation is a list of 1; expected 'size' and 'counts'. Mend: bring polygons as COCO" in row["error"]


def test_parquet_is_written_again_with_all_columns(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", [11, 12, 13])
    open_masks(path).rewrite(tmp_path / "b.parquet", Chosen({12, 13}))
    before, after = pq.read_table(path), pq.read_table(tmp_path / "b.parquet")
    assert after.drop_columns("sam_quality").equals(before.slice(1))
    assert after["sam_quality"].to_pylist() == [None, 0.5]
    open_masks(path).rewrite(tmp_path / "b.parquet", Chosen(set()))
    assert pq.read_table(tmp_path / "b.parquet").num_rows == 0


def test_parquet_that_can_t_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_text("no")
    with pytest.raises(DataError, match="can't be read as Parquet"):
        listed(path, tmp_path)
    pq.write_table(pa.table({"id": [1], "image": ["a.png"]}), path)
    with pytest.raises(DataError, match="no column 'height'"):
        listed(path, tmp_path)
    with pytest.raises(DataError, match="id 5 occurs twice"):
        listed(parquet(path, [5, 5]), tmp_path)
    whole = parquet(path, list(range(500))).read_bytes()
    path.write_bytes(whole[:8] + bytes(400) + whole[408:])  # the footer is whole, the first page is not
    with pytest.raises(DataError, match="can't be read as Parquet"):
        listed(path, tmp_path)


def test_a_first_row_without_an_image(tmp_path: Path) -> None:
    found = rows(parquet(tmp_path / "a.parquet", [1, 2, 3], image=[None, "a.png", None]), tmp_path)
    assert {row["id"]: row["error"] is None for row in found} == {1: False, 2: True, 3: False}
    assert all("its image is None" in row["error"] for row in found if row["error"])


# --- memory ---------------------------------------------------------------------------------------------------------


def test_listing_takes_no_more_memory_for_more_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "_CHUNK", 1 << 12)
    rle = encode_rle(square())
    peaks = []
    for count in (1_000, 5_000):
        images = [{"id": i, "file_name": f"{i}.png", "height": 8, "width": 10} for i in range(count // 4)]
        annotations = [{"id": i, "image_id": i % (count // 4), "segmentation": rle} for i in range(count)]
        path = tmp_path / f"{count}.json"
        path.write_text(json.dumps({"images": images, "annotations": annotations}))
        del images, annotations
        tracemalloc.start()
        with MaskIndex(tmp_path / f"{count}.sqlite", name="set") as index:
            open_masks(path).fill(index)
            listed_masks = sum(len(part) for part in index.parts(20))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert listed_masks == count
    # 4,000 masks more would be 2 MB and more; when garbage is collected makes some difference
    assert peaks[1] < peaks[0] + 300_000
