"""Writes benchmarks/README.md from the numbers in benchmarks/results: nothing is measured here.

    python benchmarks/table.py             every results/<name>.json or <name>_gpu.json that has a benchmark of its name
    python benchmarks/table.py --check     exits 1 where the README is not what the numbers say

Each benchmark is a script with a function `tables` from its numbers to Markdown; its part of the README stands between
two marks, and everything else in the README stays.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
README = HERE / "README.md"
INTRODUCTION = """# Benchmarks

Ours and other libraries', interleaved in one process: `python benchmarks/<name>.py` measures, and
`python benchmarks/table.py` writes this page from `benchmarks/results/`. Peers come with
`pip install 'arrcoc-sam[bench]'`.
"""


def with_section(document: str, name: str, text: str) -> str:
    """A document whose part of this name is replaced, or added at its end."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if begin not in document:
        script = name.removesuffix("_gpu")
        title = script[:1].upper() + script[1:].replace("_", " ") + (" on a GPU" if script != name else "")
        document = f"{document.rstrip()}\n\n## {title} (`benchmarks/{script}.py`)\n\n{begin}\n{end}\n"
    before, _, rest = document.partition(begin)
    return f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}"


def assembled(document: str) -> str:
    """The README with every part that there are numbers for."""
    for path in sorted((HERE / "results").glob("*.json")):
        script = path.stem.removesuffix("_gpu")
        if (HERE / f"{script}.py").exists():
            benchmark = importlib.import_module(script)
            document = with_section(document, path.stem, benchmark.tables(json.loads(path.read_text())))
    return document


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the README would change")
    arguments = parser.parse_args()
    found = README.read_text() if README.exists() else INTRODUCTION
    wanted = assembled(found)
    if arguments.check:
        return 0 if README.exists() and wanted == found else 1
    README.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
