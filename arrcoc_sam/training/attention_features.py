"""Feature maps of a backbone, whatever it is: a timm name, a timm model, or any module that answers with maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from arrcoc_sam.errors import CheckpointError, InputError, UnknownNameError, UnsupportedModelError, explain

__all__ = ["BATCH_NORMS", "BatchNorm", "FeatureMaps"]

BatchNorm: TypeAlias = Literal["keep", "frozen", "group"]
BATCH_NORMS: Final = ("keep", "frozen", "group")

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class FeatureMaps(nn.Module):
    """A backbone that answers an image with maps of features, fine to coarse.

    Args:
        backbone: The name of a timm model, which is made with ``features_only`` (convolutional stages, or the token
            grids of a ViT); or a module that answers (B, 3, S, S) with one map (B, C, h, w) or a sequence of them, or
            a timm ViT.
        image_size: Side of the square images, pixels.
        pretrained: Load timm's published weights.
        batch_norm: "frozen" keeps running statistics as they are, "group" puts group normalisation in its place (for
            training from random weights); both make what a part of a batch gives independent of the rest of it. "keep"
            leaves the layers alone.

    Attributes:
        channels: Of each map.
        grids_hw: Rows and columns of each map.

    Raises:
        UnknownNameError: timm has no such model.
        CheckpointError: Its weights can't be had.
        UnsupportedModelError: What the backbone answers with has no places.

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
    ) -> None:
        super().__init__()
        if batch_norm not in BATCH_NORMS:
            raise UnknownNameError(explain(f"batch_norm={batch_norm!r}", f"one of {', '.join(BATCH_NORMS)}"))
        if image_size < 8:
            raise InputError(explain(f"image_size={image_size}", "at least 8 pixels"))
        self.label = backbone if isinstance(backbone, str) else type(backbone).__name__
        self.image_size = image_size
        module = _timm_features(backbone, image_size, pretrained) if isinstance(backbone, str) else backbone
        if batch_norm == "group":
            _put_group_norm(module)
        self._frozen_norm = batch_norm == "frozen"
        self.backbone = module
        mean, std = _normalisation(backbone)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        maps = self._probe()
        self.channels = tuple(int(each.shape[1]) for each in maps)
        self.grids_hw = tuple((int(each.shape[2]), int(each.shape[3])) for each in maps)

    def forward(self, images: Tensor) -> list[Float[Tensor, "B _ _ _"]]:
        """The maps of (B, 3, S, S) images: uint8, or floats in [0, 1]."""
        pixels = images.to(self.mean.dtype) / 255 if images.dtype == torch.uint8 else images
        return self._maps((pixels - self.mean) / self.std)

    def train(self, mode: bool = True) -> FeatureMaps:
        """As ``nn.Module.train``, but for frozen statistics."""
        super().train(mode)
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
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            explain(f"the weights of {name} can't be had ({reason})", "a network or a cache")
        ) from error
    except (RuntimeError, AttributeError, AssertionError) as error:
        raise UnsupportedModelError(
            explain(f"{name} has no spatial features ({error})", "a model that timm makes with features_only=True")
        ) from error
    features: nn.Module = model
    return features


def _normalisation(backbone: str | nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and deviation that a timm model's weights go with, ImageNet's where it does not say."""
    if isinstance(backbone, str):
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
