"""Writes ``docs/attention_families.md`` from the table of families: ``python -m arrcoc_sam.attention.families_doc``."""

from __future__ import annotations

import sys
from pathlib import Path

from arrcoc_sam.attention.families import FAMILIES, UNVERIFIED
from arrcoc_sam.errors import OutputError, explain

__all__ = ["families_table"]


def families_table() -> str:
    """The table as Markdown."""
    lines = [
        "# Attention families",
        "",
        "Whose attention `ViTAttention` reads, how, and whose it refuses, by name and with the reason: a map that may",
        "be wrong is worse than none. *Tested with* names the models that `tests/attention/test_vit_families.py`",
        "builds (small, with random weights) and compares with their own eager attention to 1e-6, outputs unchanged",
        "bit for bit.",
        "",
        "Written by `python -m arrcoc_sam.attention.families_doc`; a test checks that it is up to date.",
        "",
        "## Supported",
        "",
        "| library | family | how | tested with |",
        "| --- | --- | --- | --- |",
    ]
    for family in FAMILIES:
        if family.supported:
            tested = ", ".join(f"`{example.name}`" for example in family.examples)
            lines.append(f"| {family.library} | {_code(family.names)} | {family.note} | {tested} |")
    lines += ["", "## Refused", "", "| library | family | why |", "| --- | --- | --- |"]
    for family in FAMILIES:
        if not family.supported:
            lines.append(f"| {family.library} | {_code(family.names)} | {family.note} |")
    lines.append(f"| both | every other | {UNVERIFIED} |")
    return "\n".join(lines) + "\n"


def _code(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def main(arguments: list[str]) -> int:
    """Write the table to the path given, or to ``docs/attention_families.md`` of a source checkout."""
    path = Path(arguments[0]) if arguments else Path(__file__).parents[2] / "docs" / "attention_families.md"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(families_table(), encoding="utf-8")
    except OSError as error:
        raise OutputError(explain(f"{path} can't be written ({error})", "a folder that can be written to")) from error
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
