"""``arrcoc-sam train segmenter`` on every kind of data: what it writes, resumes and refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from arrcoc_sam.errors import InputError
from arrcoc_sam.masks import encode_rle
from arrcoc_sam.scenes import Scene, generate_scene
from arrcoc_sam.segmenters import load_segmenter
from arrcoc_sam.training.segmenter_config import DataSettings, SegmenterConfig, default_segmenter_config

Command = Callable[..., Any]

STAGE = "[[training.stages]]\nimage_size = 64\nsteps = 2\nnum_images = 2\nnum_targets = 2\n"
SMALL = f"[training]\nwarmup_steps = 1\nema_decay = 0.5\n[training.recipe]\nnum_rounds = 2\n{STAGE}"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A COCO file of two scenes beside their pictures, and the same as a folder of masks."""
    (tmp_path / "images").mkdir()
    images, annotations, hierarchies = [], [], []
    for number, seed in enumerate((3, 5)):
        scene = generate_scene(seed, size=96)
        Image.fromarray(scene.image[:72]).save(tmp_path / "images" / f"{number}.png")  # no square: there is padding
        images.append({"id": number, "file_name": f"{number}.png", "height": 72, "width": 96})
        first = len(annotations)
        masks = scene.masks[:, :72]
        for mask in masks:
            rle = encode_rle(torch.from_numpy(np.ascontiguousarray(mask)))
            annotations.append({"id": len(annotations), "image_id": number, "segmentation": rle})
        for whole, part, subpart in scene.triples():
            if (masks[whole] & masks[part] & masks[subpart]).any():
                levels = {"whole": first + int(whole), "part": first + int(part), "subpart": first + int(subpart)}
                hierarchies.append({"id": len(hierarchies), "image_id": number, **levels})
        folder = tmp_path / "masks" / str(number)
        folder.mkdir(parents=True)
        for i, mask in enumerate(masks):
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{i}.png")
    keep = {annotation["id"] for annotation in annotations if area(annotation) > 0}
    hierarchies = [h for h in hierarchies if {h["whole"], h["part"], h["subpart"]} <= keep]
    annotations = [annotation for annotation in annotations if annotation["id"] in keep]
    assert hierarchies
    write(tmp_path, images, annotations, hierarchies)
    return tmp_path


def area(annotation: dict[str, Any]) -> int:
    from arrcoc_sam.masks import rle_areas

    return int(rle_areas([annotation["segmentation"]])[0])


def write(folder: Path, images: list[Any], annotations: list[Any], hierarchies: list[Any]) -> None:
    document = {"images": images, "annotations": annotations, "hierarchies": hierarchies}
    (folder / "coco.json").write_text(json.dumps(document))


def test_the_default_file_can_be_read() -> None:
    config = SegmenterConfig.read(None)
    assert config.training.total_steps == 200
    assert config.training.schedule == "cosine"
    assert "[[training.stages]]" in default_segmenter_config()


def test_presets_are_laid_under_the_file(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(
        f'preset = "sam2"\n[training]\nseed = 4\n[training.recipe]\nnum_rounds = 3\n{STAGE}'
    )
    training = SegmenterConfig.read(tmp_path / "run.toml").training
    assert (training.clip_norm, training.seed, training.schedule) == (0.1, 4, "cosine")
    assert (training.recipe.iou_kind, training.recipe.num_rounds) == ("l1", 3)


def test_print_config(command: Command) -> None:
    assert command("train", "segmenter", "--print-config").out == default_segmenter_config()


@pytest.mark.parametrize("kind", ["coco", "triples", "masks", "mixed"])
def test_every_kind_of_data(command: Command, pictures: Path, kind: str) -> None:
    coco = '[[data]]\nkind = "{kind}"\npath = "coco.json"\nimages = "images"\n'
    data = {
        "coco": coco.format(kind="coco"),
        "triples": coco.format(kind="triples"),
        "masks": '[[data]]\nkind = "masks"\npath = "."\n',
        "mixed": coco.format(kind="coco") + coco.format(kind="triples") + "weight = 3\n",
    }[kind]
    if kind == "masks":
        for file in (pictures / "masks").rglob("*.png"):  # crops of scenes leave empty ones
            if not np.asarray(Image.open(file)).any():
                file.unlink()
    (pictures / "run.toml").write_text(data + SMALL)
    answer = command("train", "segmenter", "--config", "run.toml", "--out", "run", "--json", "--device", "cpu")
    assert answer.code == 0, answer.err
    record = json.loads(answer.out)
    assert record["data"][0]["kind"] == ("coco" if kind == "mixed" else kind)
    assert record["steps"] == 2
    with safe_open(record["weights"], "pt") as file:
        assert json.loads(file.metadata()["run"])["seed"] == 0
    segmenter = load_segmenter("tiny", checkpoint=record["weights"], device="cpu")
    assert segmenter.checkpoint_hash == record["checkpoint_hash"]
    assert len(segmenter.encode(generate_scene(0, size=64).image)) == 1
    # a finished run answers again, without another step
    before = (Path("run") / "log.csv").read_bytes()
    again = command("train", "segmenter", "--config", "run.toml", "--out", "run", "--json", "--device", "cpu")
    assert again.code == 0
    assert json.loads(again.out)["figures"] == record["figures"]
    names, *_, last = before.decode().splitlines()
    assert record["figures"]["loss"] == float(last.split(",")[names.split(",").index("loss")])
    assert (Path("run") / "log.csv").read_bytes() == before


def test_scenes_of_both_styles_with_validation(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    def draw(folder: Path, *, first_seed: int, num_scenes: int, size: int, style: str, **_: Any) -> list[Scene]:
        drawn.append((style, folder.name))
        return [generate_scene(first_seed + i, size, style=style) for i in range(num_scenes)]

    monkeypatch.setattr("arrcoc_sam.training.segmenter_config.draw_bank", draw)
    validation = "[training.validation]\nevery = 1\nscenes = 2\nsize = 64\nclicks = [1]\nfigure = 'automatic_iou'\n"
    data = "[[data]]\nscenes = 4\nsize = 64\nrich_share = 0.7\n"
    (tmp_path / "run.toml").write_text(data + SMALL + validation)
    words = ("train", "segmenter", "--config", "run.toml", "--out", "run", "--device", "cpu")
    answer = command(*words, "--json")
    assert answer.code == 0, answer.err
    assert drawn == [("plain", "0-1-64"), ("rich", "1-3-64-rich")]
    record = json.loads(answer.out)
    assert record["data"][0]["generator"] == [1, 2]
    assert record["best"]["chosen_by"] == "automatic_iou"
    assert record["best"]["step"] in (1, 2)
    assert "best.safetensors" in command(*words).out


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_source_of_mixed_scenes_draws_by_its_share(share: float, tmp_path: Path) -> None:
    settings = DataSettings(scenes=10, size=32, rich_share=share)
    source, facts = settings.open(tmp_path, tmp_path / "scenes")
    assert facts["generator"] == {0.0: 1, 0.3: [1, 2], 1.0: 2}[share]
    rich = {generate_scene(seed, 32, style="rich").image.tobytes() for seed in range(10)}
    shown = [source[i].image.tobytes() in rich for i in range(len(source))]
    assert sum(shown) / len(shown) == pytest.approx(share)


def test_a_source_of_several_styles_has_some_of_each(tmp_path: Path) -> None:
    settings = DataSettings(scenes=6, size=32, rich_share=0.2, lifelike_share=0.4, natural_share=0.3)
    source, facts = settings.open(tmp_path, tmp_path / "scenes")
    assert facts["generator"] == [1, 2, 3, 4]
    assert (facts["rich_share"], facts["lifelike_share"], facts["natural_share"]) == (0.2, 0.4, 0.3)
    drawn = {
        style: {generate_scene(seed, 32, style=style).image.tobytes() for seed in seeds}
        for style, seeds in {"plain": [0], "rich": [1], "lifelike": [2, 3], "natural": [4, 5]}.items()
    }
    shown = [source[i].image.tobytes() for i in range(len(source))]
    assert set(shown) == set().union(*drawn.values())
    shares = {style: sum(image in images for image in shown) / len(shown) for style, images in drawn.items()}
    assert shares == pytest.approx({"plain": 0.1, "rich": 0.2, "lifelike": 0.4, "natural": 0.3}, abs=0.02)


@pytest.mark.parametrize(
    ("shares", "scenes"), [((0.6, 0.5), 10), ((-0.1, 0.5), 10), ((0.2, float("nan")), 10), ((0.2, 0.3), 2)]
)
def test_shares_of_scenes_that_cannot_be(shares: tuple[float, float], scenes: int) -> None:
    with pytest.raises(InputError, match="lifelike_share"):
        DataSettings(scenes=scenes, rich_share=shares[0], lifelike_share=shares[1])


def test_changed_data_is_another_run(command: Command, pictures: Path) -> None:
    (pictures / "run.toml").write_text('[[data]]\nkind = "coco"\npath = "coco.json"\nimages = "images"\n' + SMALL)
    words = ("train", "segmenter", "--config", "run.toml", "--out", "run", "--device", "cpu")
    assert command(*words).code == 0
    document = json.loads((pictures / "coco.json").read_text())
    write(pictures, document["images"], document["annotations"][:-1], [])
    answer = command(*words)
    assert answer.code == 2
    assert "origin.data" in answer.error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": {"file_name": "none.png"}}, "none.png does not exist"),
        ({"picture": (40, 30)}, "those of 1.png, upright: 30 and 40"),
        ({"mask": {"size": [72, 96], "counts": [72 * 96]}}, "the mask has no pixel"),
        ({"mask": {"size": [96, 72], "counts": [0, 72 * 96]}}, "size is [height, width]"),
    ],
)
def test_bad_data(command: Command, pictures: Path, change: dict[str, Any], message: str) -> None:
    document = json.loads((pictures / "coco.json").read_text())
    if "picture" in change:
        Image.new("RGB", change["picture"]).save(pictures / "images" / "1.png")
    elif "image" in change:
        document["images"][1] |= change["image"]
    else:
        document["annotations"][1]["segmentation"] = change["mask"]
    (pictures / "coco.json").write_text(json.dumps(document))
    (pictures / "run.toml").write_text('[[data]]\nkind = "coco"\npath = "coco.json"\nimages = "images"\n' + SMALL)
    answer = command("train", "segmenter", "--config", "run.toml", "--out", "run")
    assert answer.code == 2
    assert message in answer.error
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("preset = \n", "can't be read as TOML"),
        ('preset = "sam9"\n', "one of short, sam1, sam2"),
        ("stages = 3\n", "has the key 'stages'"),
        (f"[training]\nlearning_rat = 1e-3\n{STAGE}", "Mend: 'learning_rate', if that is meant."),
        (f'[training]\nlearning_rate = "fast"\n{STAGE}', "a number"),
        (f"[training]\nlearning_rate = -1.0\n{STAGE}", "learning_rate=-1.0"),
        (f'[training]\nschedule = "sine"\n{STAGE}', "'linear', 'cosine'"),
        (f"[training]\nwarmup_steps = 1.5\n{STAGE}", "a whole number"),
        (f"[training]\nautocast = 1\n{STAGE}", "true or false"),
        ("[training]\nseed = 1\n", "has no 'stages'"),
        ("[training]\nstages = [{image_size = 64}]\n", "has no 'steps'"),
        ("[training]\nstages = 64\n", "a list"),
        (f"[training]\ntrainable = [1]\n{STAGE}", "trainable[0]"),
        (f"[training.recipe]\nnum_rounds = 0\n{STAGE}", "num_rounds=0"),
        (f'[[data]]\nkind = "coco"\n{SMALL}', "a path for all but scenes"),
        (f'[[data]]\nkind = "coco"\npath = "none.json"\n{SMALL}', "none.json does not exist"),
        (f"[[data]]\nscenes = 0\n{SMALL}", "at least one"),
        (f"[[data]]\nrich_share = 2\n{SMALL}", "rich_share=2.0"),
        (f"[[data]]\nscenes = 1\nrich_share = 0.5\n{SMALL}", "at least 2 scenes"),
        (f"{SMALL}[training.validation]\nfigure = 'iou'\n", "one of oracle_iou"),
        (f"{SMALL}[training.validation]\nfirst_seed = 7\n", "first_seed=7"),
        (f'[model]\nsegmenter = "sam3"\n{SMALL}', "'sam_vit_b'"),
        (f'[model]\nweights = "none.safetensors"\n{SMALL}', "none.safetensors does not exist"),
        (f'[model]\nsegmenter = "sam_vit_b"\n{SMALL}', "image_size=64; expected 1024"),
        (f"[training]\naccumulation = 2\n{STAGE}", "freeze_batch_norm"),
        (f'[training]\ntrainable = ["decoder.*"]\n{STAGE}', "mask_decoder"),
        (SMALL.replace("image_size = 64", "image_size = 100"), "run.toml [training]: stages[0]: image_size=100"),
        (f"[training.recipe]\ndecoded_targets = 2\n{STAGE}", "decoded_targets=2 with grouping_weight=0"),
    ],
)
def test_bad_files_of_settings(
    command: Command, tmp_path: Path, text: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arrcoc_sam.training.segmenter_config.draw_bank", lambda *_, **__: pytest.fail("scenes drawn"))
    (tmp_path / "run.toml").write_text(text)
    answer = command("train", "segmenter", "--config", "run.toml", "--out", "run")
    assert answer.code == 2
    assert message in answer.error
    assert not Path("run").exists()


def test_a_file_that_is_not_there(command: Command) -> None:
    assert "none.toml does not exist" in command("train", "segmenter", "--config", "none.toml").error
