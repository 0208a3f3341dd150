"""Procedural images of nested objects with exact masks, for training, testing and demonstration."""

from arrcoc_sam.scenes.bank import SceneBank, draw_bank
from arrcoc_sam.scenes.generator import GENERATOR_VERSION, STYLES, generate_scene
from arrcoc_sam.scenes.scene import LEVEL_NAMES, Scene
from arrcoc_sam.scenes.splits import TEST_V1, TEST_V2, TRAIN_SEEDS, VALIDATION_SEEDS, SceneSplit

__all__ = [
    "GENERATOR_VERSION",
    "LEVEL_NAMES",
    "STYLES",
    "TEST_V1",
    "TEST_V2",
    "TRAIN_SEEDS",
    "VALIDATION_SEEDS",
    "Scene",
    "SceneBank",
    "SceneSplit",
    "draw_bank",
    "generate_scene",
]
