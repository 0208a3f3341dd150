"""Records as JSON documents."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

__all__ = ["finite", "json_document"]


def finite(record: Any) -> Any:
    """The record with None, JSON's null, in place of numbers that are not finite, of which JSON knows none."""
    if isinstance(record, Mapping):
        return {name: finite(value) for name, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [finite(value) for value in record]
    return None if isinstance(record, float) and not math.isfinite(record) else record


def json_document(record: Any) -> str:
    """A record as a JSON document, with null for numbers that are not finite, and a line break at its end."""
    return json.dumps(finite(record), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
