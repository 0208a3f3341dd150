"""``arrcoc-sam validate`` with few trials: what it prints, writes and exits with."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from arrcoc_sam.cli import validate_job
from arrcoc_sam.granularity.validation import ValidationReport

Command = Callable[..., Any]

SMALL = ("validate", "--trials", 10, "--scenes", 30, "--heads", 1, "--grid", 12)


@pytest.fixture(scope="module")
def report() -> ValidationReport:
    """A small report, for tests of what becomes of it."""
    confusion = pd.DataFrame(
        [[9, 0, 0, 1], [0, 8, 1, 1], [0, 0, 9, 1], [0, 0, 0, 10], [0, 1, 0, 9], [0, 0, 0, 10]],
        index=["whole", "part", "subpart", "smooth random", "jittered centre", "sinks"],
        columns=["whole", "part", "subpart", "abstain"],
    )
    kinds = ["smooth random", "jittered centre", "sinks"]
    rows = []
    for null, rejected in (("other images", 5), ("toroidal shifts", 20), ("pixel shuffling", 90)):
        for kind in kinds:
            low, high = rejected / 100 - 0.04, rejected / 100 + 0.06
            rows.append((kind, null, 100, rejected, rejected / 100, low, high, low > 0.05))
    sizes = pd.DataFrame(rows, columns=["attention", "null", "trials", "rejected", "rate", "low", "high", "convicted"])
    single = pd.DataFrame(
        [("pearson", 0.8, 0.2, 0.2, 0.6)],
        columns=["metric", "balanced_accuracy", "whole_of_nothing", "part_of_nothing", "subpart_of_nothing"],
    )
    by_gain = pd.DataFrame(
        [[1.0, "whole", 10, 8, 0, 2]], columns=["gain", "level", "heads", "right", "wrong", "abstained"]
    )
    return ValidationReport(
        confusion=confusion,
        by_gain=by_gain,
        balanced_accuracy=26 / 30,
        balanced_accuracy_answered=0.963,
        abstained=0.1,
        false_claims=1 / 30,
        sizes=sizes,
        single_image=single,
        num_images=30,
        alpha=0.05,
        seed=0,
    )


def test_the_whole_pipeline_runs_and_answers_in_json(command: Command) -> None:
    answer = command(*SMALL, "--json")
    assert answer.code in (0, 1), answer.err  # so few trials may convict by chance
    record = json.loads(answer.out)
    assert record["passed"] is (answer.code == 0)
    assert sum(sum(row.values()) for row in record["confusion"].values()) == 2 * 3 * 3  # kinds of head, levels, gains
    assert [(row["gain"], row["level"]) for row in record["by_gain"][:2]] == [(0.5, "whole"), (0.5, "part")]
    own = [row for row in record["sizes"] if row["null"] == "other images"]
    assert [row["trials"] for row in own] == [10, 10, 10]
    assert all(row["low"] <= row["rate"] <= row["high"] for row in record["sizes"])
    assert record["versions"]["torch"]


def test_numbers_are_printed_and_written(
    command: Command, report: ValidationReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validate_job, "validate", lambda **_: report)
    answer = command("validate", "-o", "out")
    assert answer.code == 0, answer.err
    assert "Balanced accuracy 0.867" in answer.out
    assert "10.0 % abstain" in answer.out
    assert "know nothing of the image: 3.33 %" in answer.out
    assert "Passed." not in answer.out
    assert "Not convicted in 100 trials; a verdict takes 10,000 (--trials 10000)." in answer.out
    assert "Power" in answer.out
    assert {file.name for file in Path("out").iterdir()} == {
        "by_gain.csv",
        "confusion.csv",
        "false_positive_rates.csv",
        "single_image.csv",
        "validation.json",
        "validation.png",
    }
    pd.testing.assert_frame_equal(pd.read_csv("out/confusion.csv", index_col=0), report.confusion)
    record = json.loads(Path("out/validation.json").read_text())
    assert record["passed"] is True
    assert (record["conclusive"], record["num_trials"]) == (False, 100)
    assert record["command"] == "arrcoc-sam validate -o out"
    monkeypatch.setattr(validate_job, "validate", lambda **_: replace(report, balanced_accuracy_answered=float("nan")))
    assert command("validate", "-o", "out").code == 0
    record = json.loads(Path("out/validation.json").read_text(), parse_constant=pytest.fail)
    assert record["balanced_accuracy_answered"] is None


def test_ten_thousand_trials_are_a_verdict(
    command: Command, report: ValidationReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = replace(report, sizes=report.sizes.assign(trials=10_000))
    monkeypatch.setattr(validate_job, "validate", lambda **_: many)
    assert "Passed." in command("validate").out
    assert json.loads(command("validate", "--json").out)["conclusive"] is True


def test_a_method_that_errs_too_often_exits_1_and_says_why(
    command: Command, report: ValidationReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    guilty = report.sizes.assign(
        convicted=(report.sizes["null"] == "pixel shuffling") | (report.sizes["attention"] == "sinks")
    )
    monkeypatch.setattr(validate_job, "validate", lambda **_: replace(report, sizes=guilty))
    answer = command("validate")
    assert answer.code == 1
    assert "not passed: the test rejects more often than 0.05 for sinks" in answer.err
    unconvicted = report.sizes.assign(convicted=False)
    monkeypatch.setattr(validate_job, "validate", lambda **_: replace(report, sizes=unconvicted))
    answer = command("validate", "--json")
    assert answer.code == 1
    assert "pixel shuffling was not convicted" in answer.err
    assert json.loads(answer.out)["passed"] is False


def test_bad_input_is_refused(command: Command) -> None:
    answer = command("validate", "--alpha", "2", "-o", "out")
    assert answer.code == 2
    assert answer.error.startswith("error: --alpha 2; expected")
    for gain in ("nan", "inf", "-1", "0"):
        answer = command("validate", "--gain", gain, "-o", "out")
        assert answer.code == 2
        assert answer.error.startswith(f"error: --gain {gain}; expected")
    assert not Path("out").exists()
    assert command("validate", "--scenes", "10").code == 2
