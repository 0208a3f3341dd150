"""One device, or many by Accelerate: what a training loop needs of them.

A run is on many devices when it was started so (``accelerate launch``, ``torchrun``); nothing is launched here.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from arrcoc_sam.errors import MissingExtraError
from arrcoc_sam.inputs import choose_device

__all__ = ["AcceleratedDevices", "Devices", "SingleDevice", "open_devices"]


@runtime_checkable
class Devices(Protocol):
    """Where a training step runs.

    Attributes:
        device: Of this process.
        rank: Of this process, 0 on the main one.
        world_size: How many processes there are.
    """

    device: torch.device
    rank: int
    world_size: int

    def prepare(self, module: nn.Module) -> nn.Module:
        """The module whose forward pass is called, its gradients shared among the processes."""
        ...

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        ...

    def unsynced(self, module: nn.Module) -> AbstractContextManager[object]:
        """Inside, gradients are kept for a later backward pass and not shared yet."""
        ...

    def wait(self) -> None:
        """Wait for the other processes."""
        ...


class SingleDevice:
    """This process alone.

    Args:
        device: "auto", "cpu", "cuda" or "mps".
    """

    rank = 0
    world_size = 1

    def __init__(self, device: torch.device | str = "auto") -> None:
        self.device = choose_device(device)

    def prepare(self, module: nn.Module) -> nn.Module:
        """The module on the device."""
        return module.to(self.device)

    def sum(self, values: Tensor) -> Tensor:
        """The values."""
        return values

    def unsynced(self, module: nn.Module) -> AbstractContextManager[object]:
        """Nothing to wait for."""
        del module
        return nullcontext()

    def wait(self) -> None:
        """Nobody to wait for."""


class AcceleratedDevices:
    """The processes that a launcher started, by Accelerate.

    Args:
        device: "cpu" keeps them off the GPUs; anything else leaves the choice to Accelerate.

    Raises:
        MissingExtraError: Accelerate is not installed.
    """

    def __init__(self, device: torch.device | str = "auto") -> None:
        try:
            from accelerate.accelerator import Accelerator
            from accelerate.utils.dataclasses import DistributedDataParallelKwargs
        except ImportError as error:
            raise MissingExtraError.of("accelerate", "train") from error
        # Which heads a batch uses depends on its prompts.
        unused = DistributedDataParallelKwargs(find_unused_parameters=True)
        self._accelerator: Any = Accelerator(cpu=str(device) == "cpu", kwargs_handlers=[unused])
        self.device: torch.device = self._accelerator.device
        self.rank: int = self._accelerator.process_index
        self.world_size: int = self._accelerator.num_processes

    def prepare(self, module: nn.Module) -> nn.Module:
        """The module in DistributedDataParallel; on GPUs batch normalisation takes the statistics of all of them."""
        if self.device.type == "cuda":
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        prepared: nn.Module = self._accelerator.prepare(module)
        return prepared

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        total: Tensor = self._accelerator.reduce(values, reduction="sum")
        return total

    def unsynced(self, module: nn.Module) -> AbstractContextManager[object]:
        """DistributedDataParallel's ``no_sync``."""
        context: AbstractContextManager[object] = self._accelerator.no_sync(module)
        return context

    def wait(self) -> None:
        """A barrier."""
        self._accelerator.wait_for_everyone()


def open_devices(device: torch.device | str = "auto") -> Devices:
    """All processes where a launcher started several (``WORLD_SIZE``), else this one.

    Raises:
        InputError: No such device here.
        MissingExtraError: Several processes without Accelerate.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return AcceleratedDevices(device)
    return SingleDevice(device)
