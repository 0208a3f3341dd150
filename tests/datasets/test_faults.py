"""The commonest of messages."""

from __future__ import annotations

import time

from arrcoc_sam.datasets.faults import commonest


def test_a_long_name_takes_no_time() -> None:
    start = time.process_time()
    assert commonest(["x" * 30_000]) == "x" * 30_000
    assert time.process_time() - start < 0.5


def test_apostrophes_are_no_quotes() -> None:
    messages = [
        "it can't be read and doesn't show",
        "it can't be opened and doesn't show",
        "'a b' is gone",
        "'c' is gone",
    ]
    assert commonest(messages) == "'a b' is gone"
