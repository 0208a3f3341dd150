"""The optimizers of training: AdamW, and Muon for the weights that are matrices."""

from __future__ import annotations

from typing import Any, Literal

from timm.optim.muon import Muon
from torch import nn
from torch.optim import AdamW, Optimizer

__all__ = ["OptimizerName", "build_optimizer"]

OptimizerName = Literal["adamw", "muon"]

_ENCODER = "image_encoder."
_BETAS = (0.9, 0.999)
_SMALLEST_SIDE = 16


def build_optimizer(
    name: OptimizerName, model: nn.Module, *, learning_rate: float, weight_decay: float, encoder_rate: float = 1.0
) -> Optimizer:
    """An optimizer of the trained parameters; biases, norms and embeddings of one row are not decayed.

    Muon (Jordan et al. 2024) orthogonalises the step of a matrix. Its steps are made as large as AdamW's (Liu et al.
    2025, arXiv 2502.16982), so that a learning rate means the same for both. What is no matrix steps by Adam with
    Nesterov's momentum: biases, norms, embeddings (a layer that shares its weight with one, too), kernels of one
    channel each or of transposed convolutions, layers of fewer than 16 numbers.

    Args:
        name: "adamw" or "muon".
        model: After :func:`~arrcoc_sam.training.trainable.set_trainable`.
        learning_rate: The peak.
        weight_decay: Of matrices and kernels, decoupled.
        encoder_rate: What the image encoder's learning rate is multiplied with.

    Returns:
        The optimizer; each of its groups has ``peak``, the learning rate for schedules to scale.
    """
    matrices = _matrices(model) if name == "muon" else set()
    members: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for title, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = learning_rate * (encoder_rate if title.startswith(_ENCODER) else 1.0)
            decay = weight_decay if parameter.ndim > 1 and parameter.shape[0] > 1 else 0.0
            members.setdefault((rate, decay, parameter in matrices), []).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": parameters, "lr": rate, "peak": rate, "weight_decay": decay, "use_fallback": not matrix}
        for (rate, decay, matrix), parameters in members.items()
    ]
    if name == "adamw":
        return AdamW(groups, betas=_BETAS)
    return Muon(groups, nesterov=True, adjust_lr_fn="match_rms_adamw", conv_mode="flatten", betas=_BETAS)


def _matrices(model: nn.Module) -> set[nn.Parameter]:
    """Weights of linear layers, and of convolutions that mix channels, with no side of a few numbers only."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    layers: list[Any] = [m for m in model.modules() if isinstance(m, kinds) and getattr(m, "groups", 1) == 1]
    embedded = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    weights = {layer.weight for layer in layers if isinstance(layer.weight, nn.Parameter)}  # not a parametrization's
    return {weight for weight in weights - embedded if min(weight.flatten(1).shape) >= _SMALLEST_SIDE}
