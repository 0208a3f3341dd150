from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from importlib.util import find_spec

import numpy as np

import arrcoc_sam._version
from arrcoc_sam.report.provenance import Provenance, installed_versions


def test_versions_are_those_installed() -> None:
    versions = installed_versions()
    assert versions["numpy"] == np.__version__
    for name in ("transformers", "av"):  # of hf: and video segmenters; optional
        assert (name in versions) == (find_spec(name) is not None)
    assert versions["python"] == platform.python_version()
    assert versions["arrcoc-sam"] == arrcoc_sam._version.__version__


def test_rows_hold_what_is_known_only() -> None:
    made = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    rows = Provenance(command="x", seed=0, versions={"torch": "2"}, created=made).rows()
    assert rows == [("Command", "x"), ("Seed", "0"), ("torch version", "2"), ("Made", "2026-01-02 03:04 UTC")]


def test_it_goes_into_json() -> None:
    record = json.loads(json.dumps(Provenance(segmenter="tiny").as_json()))
    assert record["demonstration_model"] is True
    assert record["checkpoint_hash"] is None
