"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator

# Workers that share the cores take their part of them each: more threads than cores wait for one another. Set before
# torch is imported, and for the processes that tests start.
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _WORKERS)))

import jaxtyping  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture
def as_at_run_time() -> Iterator[None]:
    """Shape checks of the test run off, so that bad input meets the package's own errors, as it does for users."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
