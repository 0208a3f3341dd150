"""What the three ways of ``segment`` share: who answers, and where the masks go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from arrcoc_sam.cli.console import out, print_json
from arrcoc_sam.cli.options import check_segmenter, open_segmenter
from arrcoc_sam.errors import InputError, explain
from arrcoc_sam.report import Provenance

if TYPE_CHECKING:
    from arrcoc_sam.segmenters.base import Segmenter

__all__ = ["SegmentSetting"]


@dataclass(frozen=True)
class SegmentSetting:
    """The options of ``segment`` that do not say what is asked.

    Attributes:
        segmenter: Its name.
        checkpoint: A file of weights, or None.
        device: Where it runs.
        out: Folder or .json file; None for stdout.
        output_format: "json" or "png".
        as_json: Whether the record goes to stdout as well.
        command: The command line.
    """

    segmenter: str
    checkpoint: Path | None
    device: str
    out: Path | None
    output_format: Literal["json", "png"]
    as_json: bool
    command: str

    def check(self, *, only_json: str | None = None) -> None:
        """Refuse what can be refused before any work.

        Args:
            only_json: The option that answers as JSON only, where there is one.

        Raises:
            InputError: Pictures asked of it.
            UnknownNameError: No segmenter has this name.
        """
        if only_json is not None and self.output_format == "png":
            raise InputError(explain(f"--format png with {only_json}", "json, which holds masks as run lengths"))
        check_segmenter(self.segmenter)

    def open(self) -> Segmenter:
        """The segmenter."""
        return open_segmenter(self.segmenter, self.checkpoint, self.device)

    def provenance(self, segmenter: Segmenter) -> dict[str, Any]:
        """Where the masks come from, for the record."""
        return Provenance(
            command=self.command,
            segmenter=segmenter.name,
            checkpoint_hash=segmenter.checkpoint_hash,
            device=str(segmenter.device),
        ).as_json()

    @property
    def prints_record(self) -> bool:
        """Whether stdout is the record's."""
        return self.as_json or self.out is None

    def print(self, record: dict[str, Any], summary: str, written: Sequence[Path]) -> None:
        """The record on stdout; or a line about it, if not empty, and the files."""
        if self.prints_record:
            print_json(record)
            return
        if summary:
            out().print(summary)
        for path in written:
            out().print(f"Wrote {path}", soft_wrap=True, markup=False)
