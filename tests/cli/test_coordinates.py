from __future__ import annotations

import pytest

from arrcoc_sam.cli.coordinates import parse_box, parse_integers, parse_labelled_point, parse_point
from arrcoc_sam.errors import InputError


def test_what_is_typed_is_what_is_meant() -> None:
    assert parse_point(" 12 , -0.5") == (12.0, -0.5)
    assert parse_labelled_point("1,2,0") == (1.0, 2.0, 0)
    assert parse_box("1,2,3,4") == (1.0, 2.0, 3.0, 4.0)
    assert parse_integers("3,-1", "--heads") == [3, -1]


@pytest.mark.parametrize("text", ["", "1", "1,2,3", "a,b", "1;2", "inf,1", "nan,nan", "1,"])
def test_what_is_no_point(text: str) -> None:
    with pytest.raises(InputError, match="the point"):
        parse_point(text)


@pytest.mark.parametrize("text", ["1,2,3", "3,1,2,2", "1,3,2,2", "1,2,3,x"])
def test_what_is_no_box(text: str) -> None:
    with pytest.raises(InputError, match="the box"):
        parse_box(text)
