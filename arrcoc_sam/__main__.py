"""``python -m arrcoc_sam``: the command ``arrcoc-sam``, where its script is not on the path."""

import sys

from arrcoc_sam.cli.main import run

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(run())
