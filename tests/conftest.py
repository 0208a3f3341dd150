"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator

# Workers that share the cores take their part of them each: more threads than cores wait for one another, ten times as
# long as they work. Set before torch is imported, in workers alone, which inherit what the process above them sets.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))

# Tests compare GPUs with the CPU, whose convolutions are not rounded to TF32.
os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")

import hypothesis
import jaxtyping
import pytest

hypothesis.settings.register_profile("no deadline", deadline=None)  # a busy machine fails no test
hypothesis.settings.load_profile("no deadline")


@pytest.fixture
def as_at_run_time() -> Iterator[None]:
    """Shape checks of the test run off, so that bad input meets the package's own errors, as it does for users."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
