"""Degraded masks: as wrong as asked, in the way that their name says, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrcoc_sam.errors import InputError, ShapeError, UnknownNameError
from arrcoc_sam.masks import connected_components
from arrcoc_sam.quality.degradations import DEGRADATIONS, MaskContext, degrade, mask_context

SIZE = 96


def disc(x: float, y: float, radius: float, size: int = SIZE) -> np.ndarray:
    rows, columns = np.ogrid[:size, :size]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


MASK = disc(40, 44, 18)
CONTEXT = MaskContext(
    neighbours=np.stack([disc(78, 44, 19), disc(85, 90, 5)]),
    parts=np.stack([disc(40, 44, 9), disc(34, 40, 6)]),
    donors=[disc(20, 20, 10, size=48) & ~disc(20, 20, 5, size=48)],
)


@pytest.mark.parametrize("severity", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("kind", ["dilate", "erode", "shift", "hole", "boundary_noise", "merge"])
def test_severity_is_the_share_of_agreement_that_is_lost(kind: str, severity: float) -> None:
    rounding = {"shift": 0.03, "boundary_noise": 0.02}.get(kind, 1 / MASK.sum())
    assert iou(MASK, degrade(MASK, kind, severity, context=CONTEXT, seed=3)) == pytest.approx(
        1 - severity, abs=rounding
    )


def test_each_kind_is_what_its_name_says() -> None:
    made = {kind: degrade(MASK, kind, 0.4, context=CONTEXT, seed=1) for kind in DEGRADATIONS}
    assert (made["dilate"] & MASK).sum() == MASK.sum()
    assert made["erode"][44, 40]
    assert not made["erode"][44, 22]
    assert not (made["erode"] & ~MASK).any()
    assert made["shift"].sum() == MASK.sum()
    assert not (made["hole"] & ~MASK).any()
    assert (made["boundary_noise"] & ~MASK).any()
    assert (MASK & ~made["boundary_noise"]).any()
    added = made["merge"] & ~MASK
    assert (added & CONTEXT.neighbours[0]).sum() == added.sum() > 0
    assert any((made["part"] == part).all() for part in CONTEXT.parts)
    # a ring stays a ring
    _, pieces = connected_components(~made["paste"])
    assert int(pieces) == 2


def test_part_of_a_severity_is_the_one_of_that_area() -> None:
    shares = CONTEXT.parts.sum((1, 2)) / MASK.sum()
    for part, share in zip(CONTEXT.parts, shares, strict=True):
        assert (degrade(MASK, "part", 1 - share, context=CONTEXT) == part).all()


def test_part_without_parts_is_one_side_of_a_cut() -> None:
    side = degrade(MASK, "part", 0.5, seed=5)
    assert iou(MASK, side) == pytest.approx(0.5, abs=1 / MASK.sum())
    middle, other = (np.argwhere(region).mean(0) for region in (side, MASK & ~side))
    towards = (np.argwhere(MASK) - (middle + other) / 2) @ (middle - other)
    agrees = (towards > 0) == side[MASK]
    assert agrees.mean() > 0.97


def test_paste_goes_from_the_masks_box_to_the_donors_place() -> None:
    near = np.argwhere(degrade(MASK, "paste", 1e-6, context=CONTEXT))
    np.testing.assert_array_equal([near.min(0), near.max(0)], [np.argwhere(MASK).min(0), np.argwhere(MASK).max(0)])
    donor = CONTEXT.donors[0]
    far = degrade(MASK, "paste", 1.0, context=CONTEXT)
    np.testing.assert_array_equal(far, np.kron(donor, np.ones((2, 2), dtype=bool)))


def test_shift_stays_in_the_image_where_it_can() -> None:
    corner = disc(10, 10, 8)
    for seed in range(12):
        assert degrade(corner, "shift", 0.9, seed=seed).sum() >= corner.sum() / 2


def test_merge_with_a_small_neighbour_takes_all_of_it() -> None:
    small = MaskContext(neighbours=disc(85, 90, 5)[None])
    np.testing.assert_array_equal(degrade(MASK, "merge", 0.5, context=small), MASK | small.neighbours[0])


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(DEGRADATIONS),
    severity=st.floats(0, 1, exclude_min=True),
    seed=st.integers(0, 2**32),
    corners=st.tuples(*[st.integers(0, 23)] * 4),
)
def test_any_mask_gives_one_that_is_not_empty_and_the_same_again(
    kind: str, severity: float, seed: int, corners: tuple[int, int, int, int]
) -> None:
    mask = np.zeros((24, 24), dtype=bool)
    (top, bottom), (left, right) = sorted(corners[:2]), sorted(corners[2:])
    mask[top : bottom + 1, left : right + 1] = True
    before = mask.copy()
    context = MaskContext(neighbours=np.eye(24, dtype=bool)[None], donors=[np.eye(5, 40, dtype=bool)])
    one, again = (degrade(mask, kind, severity, context=context, seed=seed) for _ in range(2))
    assert one.any()
    assert one.shape == mask.shape
    assert not np.shares_memory(one, mask)
    np.testing.assert_array_equal(one, again)
    np.testing.assert_array_equal(mask, before)
    if kind in ("erode", "hole", "part", "dilate"):
        assert iou(mask, one) >= 1 - severity - 1 / mask.sum()


@pytest.mark.parametrize("kind", ["shift", "hole", "boundary_noise", "part", "paste"])
def test_seeds_differ(kind: str) -> None:
    donors = MaskContext(donors=[disc(20 + 3 * place, 20, 8) for place in range(10)])
    masks = {degrade(MASK, kind, 0.4, context=donors, seed=[7, seed]).tobytes() for seed in range(6)}
    assert len(masks) > 3


def test_context_by_overlap() -> None:
    whole, part, child, beside = disc(40, 44, 20), disc(36, 44, 12), disc(34, 44, 5), disc(80, 44, 12)
    masks = np.stack([whole, part, child, beside])
    about = mask_context(masks, 1, [MASK])
    np.testing.assert_array_equal(about.parts, child[None])  # not its whole, and not itself
    np.testing.assert_array_equal(about.neighbours, beside[None])
    assert about.kinds == DEGRADATIONS
    assert len(mask_context(masks, 0).parts) == 2
    alone = mask_context(whole[None], 0).kinds
    assert set(DEGRADATIONS) - set(alone) == {"merge", "paste"}


@pytest.mark.usefixtures("as_at_run_time")
def test_bad_input() -> None:
    with pytest.raises(UnknownNameError, match=r"kind='blur'; expected one of dilate, .*paste"):
        degrade(MASK, "blur", 0.5)
    with pytest.raises(InputError, match="index=99 for 2 masks; expected one of them"):
        mask_context(np.stack([MASK, ~MASK]), 99)
    for severity in (0.0, 1.2, float("nan"), "a"):
        with pytest.raises(InputError, match="above 0 and at most 1"):
            degrade(MASK, "erode", severity)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="mask is empty"):
        degrade(MASK & False, "erode", 0.5)
    with pytest.raises(InputError, match="a bool array"):
        degrade(MASK.astype(np.uint8), "erode", 0.5)
    with pytest.raises(ShapeError, match=r"\(H, W\)"):
        degrade(MASK[None], "erode", 0.5)
    with pytest.raises(InputError, match="'merge' with a context without neighbours"):
        degrade(MASK, "merge", 0.5)
    with pytest.raises(InputError, match="'paste' with a context without donors"):
        degrade(MASK, "paste", 0.5)
    with pytest.raises(ShapeError, match=r"context.neighbours is .*\(n, 96, 96\)"):
        degrade(MASK, "merge", 0.5, context=MaskContext(neighbours=np.ones((1, 4, 4), dtype=bool)))
    with pytest.raises(InputError, match="a donor is empty"):
        degrade(MASK, "paste", 0.5, context=MaskContext(donors=[np.zeros((4, 4), dtype=bool)]))
