"""Feature maps of a backbone, whatever it is: a timm name, a timm model, or any module that answers with maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, TypeAlias, cast
from uuid import uuid4
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from arrcoc_sam.errors import CheckpointError, InputError, UnknownNameError, UnsupportedModelError, explain, first_line
from arrcoc_sam.segmenters import load_segmenter
from arrcoc_sam.segmenters.checkpoints import CHECKPOINTS
from arrcoc_sam.segmenters.tiny import set_image_size
from arrcoc_sam.segmenters.tiny_encoder import TinyEncoder
from arrcoc_sam.segmenters.weights import weights_hash
from arrcoc_sam.training.attention.memory import MapMemory

__all__ = ["BATCH_NORMS", "BatchNorm", "FeatureMaps"]

BatchNorm: TypeAlias = Literal["keep", "frozen", "group"]
BATCH_NORMS: Final = ("keep", "frozen", "group")

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, and SAM's
_SEGMENTER = "segmenter:"
_PUBLISHED_SIZE = 1024  # of the images that all of CHECKPOINTS take
_MEMORY = MapMemory(1 << 30)  # bytes
_GIVEN: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


class FeatureMaps(nn.Module):
    """A backbone that answers an image with maps of features, fine to coarse.

    Args:
        backbone: The name of a timm model, which is made with ``features_only`` (convolutional stages, or the token
            grids of a ViT); or a module that answers (B, 3, S, S) with one map (B, C, h, w) or a sequence of them, or
            a timm ViT; or "segmenter:" and the name of a segmenter of SAM's class, whose image encoder it is.
        image_size: Side of the square images, pixels.
        pretrained: Load timm's published weights.
        batch_norm: "frozen" keeps running statistics as they are, "group" puts group normalisation in its place (for
            training from random weights); both make what a part of a batch gives independent of the rest of it. "keep"
            leaves the layers alone.
        frozen: The backbone is not trained. What it answers images of bytes with is kept, for all models of the same
            name and weights together (up to a GiB): each image is worked through once, however often it is trained on.

    Attributes:
        channels: Of each map.
        grids_hw: Rows and columns of each map.

    Raises:
        UnknownNameError: timm has no such model.
        CheckpointError: Its weights can't be had.
        UnsupportedModelError: What the backbone answers with has no places.
        InputError: A size that the encoder of a segmenter does not take.

    Example:
        >>> features = FeatureMaps("test_vit", image_size=64)
        >>> features.channels, features.grids_hw
        ((64, 64, 64), ((4, 4), (4, 4), (4, 4)))
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: str | nn.Module,
        *,
        image_size: int,
        pretrained: bool = False,
        batch_norm: BatchNorm = "frozen",
        frozen: bool = False,
    ) -> None:
        super().__init__()
        if batch_norm not in BATCH_NORMS:
            raise UnknownNameError(explain(f"batch_norm={batch_norm!r}", f"one of {', '.join(BATCH_NORMS)}"))
        if image_size < 8:
            raise InputError(explain(f"image_size={image_size}", "at least 8 pixels"))
        self.label = backbone if isinstance(backbone, str) else type(backbone).__name__
        self.image_size = image_size
        module = _named_backbone(backbone, image_size, pretrained) if isinstance(backbone, str) else backbone
        if batch_norm == "group" and not frozen:
            _put_group_norm(module)
        self._frozen_norm, self.frozen = batch_norm == "frozen", frozen
        self.backbone = module.requires_grad_(not frozen)
        # A name says what the module computes; a module that was given may have settings that no weight tells.
        self._kind = f"{self.label} {module!r}" if isinstance(backbone, str) else _GIVEN.setdefault(module, uuid4().hex)
        self._digest: bytes | None = None
        self.register_load_state_dict_post_hook(_forget)  # type: ignore[no-untyped-call]
        mean, std = _normalisation(backbone)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        maps = self._probe()
        self.channels = tuple(int(each.shape[1]) for each in maps)
        self.grids_hw = tuple((int(each.shape[2]), int(each.shape[3])) for each in maps)

    def forward(self, images: Tensor) -> list[Float[Tensor, "B _ _ _"]]:
        """The maps of (B, 3, S, S) images: uint8, or floats in [0, 1]."""
        if self.frozen:
            with torch.no_grad():
                return self._remembered(images) if images.dtype == torch.uint8 else self._answer(images)
        return self._answer(images)

    def _remembered(self, images: Tensor) -> list[Tensor]:
        if self._digest is None:
            normalisation = torch.stack([self.mean, self.std]).cpu().numpy().tobytes()
            weights = weights_hash(self.backbone, frame_hw=(self.image_size, self.image_size))
            self._digest = f"{self._kind} {weights} ".encode() + normalisation
        # Autocast answers in another precision.
        reduced = b"reduced" if torch.is_autocast_enabled(images.device.type) else b""
        return _MEMORY(images, self._digest + reduced, self._answer)

    def _answer(self, images: Tensor) -> list[Tensor]:
        pixels = images.to(self.mean.dtype) / 255 if images.dtype == torch.uint8 else images
        return self._maps((pixels - self.mean) / self.std)

    def train(self, mode: bool = True) -> FeatureMaps:
        """As ``nn.Module.train``, but for a frozen backbone or frozen statistics."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        if self._frozen_norm:
            for module in self.backbone.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _maps(self, pixels: Tensor) -> list[Tensor]:
        stages: Any = getattr(self.backbone, "forward_intermediates", None)
        answer = self.backbone(pixels) if stages is None else stages(pixels, intermediates_only=True)
        maps = [answer] if isinstance(answer, Tensor) else answer
        if not isinstance(maps, Sequence) or not maps or not all(isinstance(m, Tensor) and m.ndim == 4 for m in maps):
            shapes = [tuple(m.shape) if isinstance(m, Tensor) else type(m).__name__ for m in list(maps)[:3]]
            raise UnsupportedModelError(
                explain(
                    f"{self.label} has no spatial features: it answers with {shapes}",
                    "maps (B, C, h, w)",
                    "use a timm name, or a module that returns its feature maps and does not pool them",
                )
            )
        return list(maps)

    @torch.no_grad()
    def _probe(self) -> list[Tensor]:
        was_training = self.training
        self.eval()
        try:
            maps = self._maps(torch.zeros(1, 3, self.image_size, self.image_size))
        except UnsupportedModelError:
            raise
        except (RuntimeError, ValueError, AssertionError, IndexError) as error:
            came = f"{self.label} does not answer an image of {self.image_size} pixels ({first_line(error)})"
            mend = "use another image_size, or another backbone"
            raise UnsupportedModelError(explain(came, "spatial features", mend)) from error
        finally:
            self.train(was_training)
        if max(each.shape[2] * each.shape[3] for each in maps) < 4:
            shapes = [tuple(each.shape) for each in maps]
            raise UnsupportedModelError(
                explain(
                    f"{self.label} has no spatial features at {self.image_size} pixels: its maps are {shapes}",
                    "at least 2 x 2 places",
                    "use larger images or a backbone of a smaller stride",
                )
            )
        return maps


def _forget(module: nn.Module, _: object) -> None:
    """Other weights answer with other maps."""
    cast(FeatureMaps, module)._digest = None


def _named_backbone(name: str, image_size: int, pretrained: bool) -> nn.Module:
    if name.startswith(_SEGMENTER):
        return _segmenter_encoder(name.removeprefix(_SEGMENTER), image_size)
    return _timm_features(name, image_size, pretrained)


def _segmenter_encoder(name: str, image_size: int) -> nn.Module:
    """The image encoder of a segmenter of SAM's class; its weights are those that the segmenter has.

    SAM's own learned the positions of one size; the embedded one takes any multiple of 32 pixels.
    """
    if name in CHECKPOINTS and image_size != _PUBLISHED_SIZE:  # before a large file is fetched
        came = f"image_size={image_size} with the encoder of {name!r}"
        raise InputError(explain(came, f"image_size={_PUBLISHED_SIZE}, whose positions it learned"))
    segmenter = load_segmenter(name, device="cpu")
    encoder = getattr(segmenter.model, "image_encoder", None)
    if not isinstance(encoder, nn.Module):
        came = f"the segmenter {name!r} has no image_encoder"
        raise UnsupportedModelError(explain(came, "one of segment-anything's class, such as tiny or sam_vit_b"))
    if isinstance(encoder, TinyEncoder):
        if image_size < 32 or image_size % 32:
            came = f"image_size={image_size} with the encoder of {name!r}"
            raise InputError(explain(came, "a multiple of 32"))
        set_image_size(cast(Sam, segmenter.model), image_size)
    return encoder


def _timm_features(name: str, image_size: int, pretrained: bool) -> nn.Module:
    import timm

    name = name.removeprefix("timm:")
    if not timm.is_model(name.split(".")[0]):
        raise UnknownNameError(explain(f"timm has no model {name!r}", "a name of timm.list_models()"))
    try:
        try:
            model = timm.create_model(name, pretrained=pretrained, features_only=True, img_size=image_size)
        except TypeError:  # convolutional stages take images of any size, and no argument for it
            model = timm.create_model(name, pretrained=pretrained, features_only=True)
    except OSError as error:
        raise CheckpointError(
            explain(f"the weights of {name} can't be had ({first_line(error)})", "a network or a cache")
        ) from error
    except (RuntimeError, AttributeError, AssertionError) as error:
        raise UnsupportedModelError(
            explain(f"{name} has no spatial features ({error})", "a model that timm makes with features_only=True")
        ) from error
    features: nn.Module = model
    return features


def _normalisation(backbone: str | nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and deviation that a timm model's weights go with, ImageNet's where it does not say."""
    if isinstance(backbone, str) and not backbone.startswith(_SEGMENTER):
        import timm

        known = timm.get_pretrained_cfg(backbone.removeprefix("timm:"))
        config = {} if known is None else {"mean": known.mean, "std": known.std}
    else:
        config = getattr(backbone, "pretrained_cfg", None) or {}
    return tuple(config.get("mean", _MEAN)), tuple(config.get("std", _STD))


def _put_group_norm(module: nn.Module) -> None:
    """Group normalisation in place of batch normalisation; what follows it inside the same layer stays."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            groups = next(
                count for count in (32, 16, 8, 4, 2, 1) if child.num_features % (2 * count) == 0 or count == 1
            )
            norm: nn.Module = nn.GroupNorm(groups, child.num_features)
            # timm's BatchNormAct2d carries its activation and dropout.
            after = [
                getattr(child, part) for part in ("drop", "act") if isinstance(getattr(child, part, None), nn.Module)
            ]
            setattr(module, name, nn.Sequential(norm, *after) if after else norm)
        else:
            _put_group_norm(child)
