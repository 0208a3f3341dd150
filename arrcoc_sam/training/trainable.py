"""Which parameters of a model are trained, and what stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from arrcoc_sam.errors import InputError, explain

__all__ = ["has_live_batch_norm", "set_trainable", "set_training_mode"]


def set_trainable(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Freezes a model but for some of its parameters.

    Args:
        model: The model; ``requires_grad`` of its parameters is set.
        patterns: Names of parameters with ``*``, ``?`` and ``[…]``: ``("*",)`` is all,
            ``("mask_decoder.*", "image_encoder.blocks.1?.*")`` the decoder and two blocks of SAM's encoder.

    Returns:
        The names of the trained parameters.

    Raises:
        InputError: A pattern that no parameter has, or no pattern.

    Example:
        >>> set_trainable(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), ("1.*",))
        ['1.weight', '1.bias']
    """
    names = [name for name, _ in model.named_parameters()]
    if not patterns:
        raise InputError(explain("trainable is empty", "at least one pattern of parameter names", "use '*' for all"))
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            parts = ", ".join(sorted({f"{name.split('.')[0]}.*" for name in names}))
            raise InputError(explain(f"no parameter is called {pattern!r}", f"names such as {names[0]}, or {parts}"))
    trained = [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in set(trained))
    return trained


def set_training_mode(model: nn.Module, *, freeze_batch_norm: bool) -> None:
    """Training mode where something is trained; what is frozen keeps its statistics too.

    Args:
        model: The model, after :func:`set_trainable`.
        freeze_batch_norm: Keep the running statistics of batch normalisation everywhere; its weights may still train.
    """
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        frozen = bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
        if frozen or (freeze_batch_norm and isinstance(module, _BatchNorm)):
            module.eval()


def has_live_batch_norm(model: nn.Module) -> bool:
    """Whether some layer normalises with the statistics of its own batch, which differ from part to part of one."""
    return any(isinstance(module, _BatchNorm) and module.training for module in model.modules())
