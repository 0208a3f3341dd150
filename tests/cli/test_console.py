"""JSON as every reader takes it, and notes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from arrcoc_sam.cli.console import note, noted, print_json, print_notes
from arrcoc_sam.report.json_text import json_document

RECORD = {"a": float("nan"), "b": [1.5, np.float64("inf"), (float("-inf"), 2)], "c": {"d": np.nan, "e": "NaN", "f": 3}}
EXPECTED = {"a": None, "b": [1.5, None, [None, 2]], "c": {"d": None, "e": "NaN", "f": 3}}


def test_numbers_that_are_not_finite_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(json_document(RECORD), parse_constant=pytest.fail) == EXPECTED
    print_json(RECORD)
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == EXPECTED


def test_notes_wait_for_success(capsys: pytest.CaptureFixture[str]) -> None:
    noted("a [bold] file")
    note("at once")
    assert capsys.readouterr().err == "note: at once\n"
    print_notes(succeeded=True)
    assert capsys.readouterr().err == "note: a [bold] file\n"
    noted("of work that failed")
    print_notes(succeeded=False)
    print_notes(succeeded=True)
    assert capsys.readouterr().err == ""
