"""The Python of the README and the docs runs, block after block, with small stand-ins for weights and files."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from typer.main import get_command

import arrcoc_sam as aa
from arrcoc_sam.cli.main import app
from arrcoc_sam.datasets.coco import CocoDataset
from arrcoc_sam.masks.rle import encode_rle
from arrcoc_sam.scenes import generate_scene
from arrcoc_sam.segmenters import load_segmenter
from arrcoc_sam.segmenters.tiny import tiny_weights_path
from arrcoc_sam.training.cache.build import build_cache
from arrcoc_sam.training.cache.prompts import PointPrompts
from arrcoc_sam.training.cache.sources import SegmenterLevels

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))]

ORDER = {"README.md": (0, 3, 1, 2)}
"""Where a page shows first what it explains further down."""

ELSEWHERE = {("docs/cluster.md", 0), ("docs/training.md", 0), ("docs/video.md", 0)}
"""Blocks that need a cluster, the batch of a run that failed, or published weights: only their imports are run."""

STAND_INS = {
    "README.md": {'"timm:vit_small_patch14_dinov2", query="cls"': '"timm:test_vit", pretrained=False, query="cls"'},
    "docs/attention.md": {"timm:vit_tiny_patch16_224": "timm:test_vit"},
    "docs/granularity.md": {"range(40)": "range(4)"},
    "docs/hierarchy_training.md": {
        '"sam_vit_b"': '"tiny"',
        '"resnet50"': '"test_resnet"',
        "pretrained=True": "pretrained=False",
        '"timm:vit_small_patch16_224", {"whole": [(8, 0)], "part": [(9, 1)], "subpart": [(10, 2)]}': (
            '"timm:test_vit", {"whole": [(3, 0)], "part": [(4, 1)], "subpart": [(5, 1)]}, pretrained=False'
        ),
    },
}
"""What is replaced on a page; each occurs there."""


def blocks(page: str) -> list[tuple[int, str]]:
    """Line and text of each block of Python."""
    found, lines = [], (ROOT / page).read_text(encoding="utf-8").splitlines()
    starts = [number for number, line in enumerate(lines) if line == "```python"]
    for start in starts:
        stop = next(number for number in range(start, len(lines)) if lines[number] == "```")
        found.append((start + 2, "\n".join(lines[start + 1 : stop])))
    return found


def command_lines(page: str) -> list[tuple[int, list[str]]]:
    """Line and words of each ``arrcoc-sam …``, which may go on in the next line."""
    found, lines = [], (ROOT / page).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        words = re.match(r"(?:uv run )?arrcoc-sam (.*)", line)
        if words:
            text = words[1]
            for following in lines[number + 1 :]:
                if not text.endswith("\\"):
                    break
                text = text[:-1] + following
            found.append((number + 1, shlex.split(text, comments=True)))
    return found


def readme(names: dict[str, Any]) -> None:
    for number, name in enumerate(("dog.jpg", "cat.jpg")):
        Image.fromarray(generate_scene(number, 384).image).save(name)
    names["masks"] = torch.from_numpy(generate_scene(0, 384).masks)
    names["coarse"], names["middle"], names["fine"] = (torch.randn(2, side, side) for side in (4, 8, 16))


def filtering(names: dict[str, Any]) -> None:
    del names
    scene = generate_scene(0, 128)
    Image.fromarray(scene.image).save("0.png")
    runs, areas = encode_rle(scene.masks), scene.masks.sum((1, 2)).tolist()
    annotations = [
        {
            "id": i,
            "image_id": 1,
            "category_id": 1,
            "segmentation": run,
            "area": area,
            "bbox": [0, 0, 1, 1],
            "iscrowd": 0,
        }
        for i, (run, area) in enumerate(zip(runs, areas, strict=True), 1)
    ]
    images = [{"id": 1, "file_name": "0.png", "height": 128, "width": 128}]
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    Path("masks.json").write_text(json.dumps(document), encoding="utf-8")
    assert len(CocoDataset.read("masks.json").images) == 1


def hierarchy_training(names: dict[str, Any]) -> None:
    pictures = []
    for seed in range(3):
        pictures.append(Path(f"{seed}.png"))
        Image.fromarray(generate_scene(seed, 96).image).save(pictures[-1])
    clicks = PointPrompts({path.name: [(30.0, 40.0), (60.0, 50.0)] for path in pictures})
    build_cache(SegmenterLevels(load_segmenter("tiny"), clicks, quality=False), pictures, "hierarchies")
    names["model"] = lambda images, points, index: [torch.zeros(len(points), side, side) for side in (4, 8, 16)]
    names["pixels"], names["task_loss"] = torch.rand(3, 3, 160, 160), lambda output: output.float().mean()
    names["targets"] = torch.rand(3, 3, 20, 20)
    names["confidence"], names["valid"] = torch.ones(3, 3), torch.ones(3, 3, dtype=torch.bool)


def training(names: dict[str, Any]) -> None:
    Path("head").mkdir()
    with safe_open(tiny_weights_path(), "pt") as file:
        header, weights = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    asked = json.dumps({"transfer": {"prompt": "mask+point"}})  # as training of a head notes it
    save_file(weights, "head/weights.safetensors", metadata=header | {"run": asked})
    scene = generate_scene(0, 96)
    names["image"], names["masks"] = scene.image, scene.masks


PREPARE: dict[str, Callable[[dict[str, Any]], None]] = {
    "README.md": readme,
    "docs/filtering.md": filtering,
    "docs/hierarchy_training.md": hierarchy_training,
    "docs/training.md": training,
}


@pytest.mark.usefixtures("as_at_run_time")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_python_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found, names = blocks(page), {}
    for original in STAND_INS.get(page, {}):
        assert any(original in text for _, text in found), f"{page} no longer says {original}"
    PREPARE.get(page, lambda _: None)(names)
    for number in ORDER.get(page, range(len(found))):
        line, text = found[number]
        for original, stand_in in STAND_INS.get(page, {}).items():
            text = text.replace(original, stand_in)
        tree = ast.parse("\n" * (line - 1) + text, page)
        if (page, number) in ELSEWHERE:
            tree.body = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        exec(compile(tree, str(ROOT / page), "exec"), names)


def test_every_block_is_run_once() -> None:
    for page, order in ORDER.items():
        assert sorted(order) == list(range(len(blocks(page))))
    assert all(number < len(blocks(page)) for page, number in ELSEWHERE)
    assert {page for page in STAND_INS | PREPARE if not blocks(page)} == set()


@pytest.mark.parametrize("page", [page for page in PAGES if command_lines(page)])
def test_commands_of_a_page_have_these_options(page: str) -> None:
    for line, words in command_lines(page):
        command: Any = get_command(app)
        while words and hasattr(command, "commands"):
            assert words[0] in command.commands, f"{page}:{line}: {words[0]}"
            command = command.commands[words.pop(0)]
        words = words[: words.index(">")] if ">" in words else words
        command.make_parser(command.context_class(command)).parse_args(words)  # raises where there is no such option


def test_an_option_that_is_not_there_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.command_lines", lambda _: [(1, ["score", "masks.json", "--quick"])])
    with pytest.raises(Exception, match="--quick"):  # of typer's own click
        test_commands_of_a_page_have_these_options("README.md")


def test_scripts_that_pages_run_are_there() -> None:
    folders = ("arrcoc_sam", "benchmarks", "experiments", "notebooks")
    more = (path for folder in folders for path in (ROOT / folder).rglob("README.md"))
    pages = [*PAGES, *(path.relative_to(ROOT).as_posix() for path in more)]
    named = {
        (page, script)
        for page in pages
        for script in re.findall(
            r"^uv run (?:python|torchrun \S+ \d+) (\S+\.py)", (ROOT / page).read_text("utf-8"), re.M
        )
    }
    assert len(named) >= 10
    assert [(page, script) for page, script in named if not (ROOT / script).is_file()] == []


def test_the_package_on_a_page_has_every_public_name_and_error() -> None:
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    names = [name for name in aa.__all__ if not name.startswith("__")]
    missing = [name for name in names if not re.search(rf"`(aa|arrcoc_sam)\.{name}\b", page)]
    kinds = [name for name in aa.errors.__all__ if name.endswith("Error")]
    missing += [name for name in kinds if f"`{name}`" not in page and f"`aa.{name}`" not in page]
    assert missing == []
