"""How far an IoU-head transfer has come, on disk: a killed one goes on from there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arrcoc_sam.report.writing import made_folder
from arrcoc_sam.training.checkpoint import load_state, save_state

__all__ = ["TransferProgress"]


class TransferProgress:
    """States by name in a folder; without a folder nothing is kept, and nothing found.

    Attributes:
        digest: Of the settings, for names of states that stand beside those of other settings.

    Args:
        folder: Made if missing.
        settings: What the transfer depends on; states of another one are refused.

    Raises:
        OutputError: The folder can't be made.
    """

    def __init__(self, folder: Path | None, settings: Mapping[str, Any]) -> None:
        self._folder, self._settings = folder, json.loads(json.dumps(settings))
        self.digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        if folder is not None:
            made_folder(folder)

    def load(self, name: str) -> dict[str, Any] | None:
        """The last state of this name, on the CPU, with ``step``; None where there is none.

        Raises:
            TrainingError: It can't be read, or belongs to another transfer.
        """
        return None if self._folder is None else load_state(self._folder / f"{name}.pt", settings=self._settings)

    def save(self, name: str, step: int, parts: Mapping[str, Any]) -> None:
        """Put a state in the place of the last one.

        Raises:
            OutputError: It can't be written.
        """
        if self._folder is not None:
            save_state(self._folder / f"{name}.pt", settings=self._settings, step=step, parts=parts)
