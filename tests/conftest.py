"""What all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import jaxtyping
import pytest


@pytest.fixture
def as_at_run_time() -> Iterator[None]:
    """Shape checks of the test run off, so that bad input meets the package's own errors, as it does for users."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
