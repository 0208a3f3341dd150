"""What a promptable segmenter is taught with: how prompts are simulated, and what each term of the loss weighs.

SAM 1's and SAM 2's recipes are two configurations of one loop (:func:`arrcoc_sam.training.interactive_loss`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from arrcoc_sam.errors import InputError, UnknownNameError, explain
from arrcoc_sam.losses.multimask import IOU_LOSSES, SUPERVISIONS, IoULoss, Supervise

__all__ = ["RECIPES", "SAM1_RECIPE", "SAM2_RECIPE", "ClickRecipe", "RoundReduction", "named_recipe"]

RoundReduction: TypeAlias = Literal["mean", "sum"]
_REDUCTIONS: Final = ("mean", "sum")


@dataclass(frozen=True)
class ClickRecipe:
    """How prompts are simulated and what each term of the loss weighs.

    Attributes:
        num_rounds: Rounds with a prompt of their own, the first included: one first prompt, then error clicks.
        mask_only_rounds: Further rounds that bring no new prompt, only the last logits: 1 comes last; 2 is one last and
            one at a random place after the first round.
        box_probability: Share of targets whose first prompt is a noisy box in place of a click.
        box_noise: Standard deviation of a box corner, as a share of the box's side.
        box_noise_limit: The largest shift of a corner, as a share of the model's frame (SAM: 20 of 1024 pixels).
        multimask_boxes: Whether a first box is answered with three masks as a click is, or with one.
        given_mask_probability: Share of targets whose first prompt is somebody else's mask of them, wrong in some way,
            with a point in its middle, in place of click or box; token 0 answers
            (:mod:`arrcoc_sam.training.given_masks`). Published recipes have masks without error at most.
        truth_click_probability: Chance that a later click falls anywhere in the target in place of the error region.
        largest_target: Targets that cover more of their image than this are not drawn.
        focal_weight: Weight of the focal loss.
        dice_weight: Weight of the Dice loss.
        iou_weight: Weight of the IoU head's error.
        iou_kind: "mse" (SAM 1) or "l1" (SAM 2).
        iou_supervise: "all" masks of a round, or the "winner" alone.
        expected_iou: What the IoU head learns at a first click: the IoU with the target, or its mean over all masks
            that the click may have meant, each by its chance. The best answer is the same, the gradient less noisy.
        supervise_meant: What the masks of a first click learn: the target, by the best of them (SAM); or all that the
            click may have meant, each by a mask of its own and weighted by its chance
            (:func:`arrcoc_sam.losses.functional.matched_masks_loss`). The mean is the same, the gradient less noisy.
        transformer: Whether the decoder's transformer works between embedding and masks; without it mask tokens are
            read off the embedding under the click (:mod:`arrcoc_sam.training.grouping`), for one round of clicks, and
            the IoU head learns nothing.
        grouping_weight: Weight of that dense loss beside the decoder's own; of no meaning without the transformer.
        decoded_targets: How many of an image's targets go through the decoder; the dense loss has all. None: all.
        round_reduction: Whether the loss is the "mean" over the rounds or their "sum".
    """

    num_rounds: int = 3
    mask_only_rounds: int = 0
    box_probability: float = 0.2
    box_noise: float = 0.1
    box_noise_limit: float = 20 / 1024
    multimask_boxes: bool = True
    given_mask_probability: float = 0.0
    truth_click_probability: float = 0.0
    largest_target: float = 1.0
    focal_weight: float = 20.0
    dice_weight: float = 1.0
    iou_weight: float = 1.0
    iou_kind: IoULoss = "mse"
    iou_supervise: Supervise = "all"
    expected_iou: bool = False
    supervise_meant: bool = False
    transformer: bool = True
    grouping_weight: float = 0.0
    decoded_targets: int | None = None
    round_reduction: RoundReduction = "mean"

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: One is out of its range.
            UnknownNameError: An unknown loss, supervision or reduction.
        """
        if self.num_rounds < 1:
            raise InputError(explain(f"num_rounds={self.num_rounds}", "at least 1"))
        if self.mask_only_rounds not in (0, 1, 2):
            raise InputError(explain(f"mask_only_rounds={self.mask_only_rounds}", "0, 1 or 2"))
        for name in ("box_probability", "given_mask_probability", "truth_click_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(explain(f"{name}={getattr(self, name)}", "a share in [0, 1]"))
        if not 0 < self.largest_target <= 1:
            raise InputError(explain(f"largest_target={self.largest_target}", "a share in (0, 1]"))
        for name in ("box_noise", "box_noise_limit", "focal_weight", "dice_weight", "iou_weight", "grouping_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(explain(f"{name}={getattr(self, name)}", "a finite number of at least 0"))
        if self.decoded_targets is not None and not (self.transformer and self.decoded_targets >= 1):
            came = f"decoded_targets={self.decoded_targets} with transformer={self.transformer}"
            raise InputError(explain(came, "at least 1, and a transformer that decodes them; or None"))
        if self.decoded_targets is not None and self.grouping_weight == 0:
            came = (
                f"decoded_targets={self.decoded_targets} with grouping_weight=0: the other targets would teach nothing"
            )
            raise InputError(explain(came, "a weight of the dense loss above 0, or fewer num_targets"))
        others = self.box_probability + self.given_mask_probability
        if not self.transformer and (self.total_rounds > 1 or others > 0):
            came = f"transformer=False with {self.total_rounds} rounds, {others} of the first prompts no click"
            mend = "set num_rounds=1, and mask_only_rounds, box_probability and given_mask_probability to 0"
            raise InputError(explain(came, "nothing but one click", mend))
        for name, known in (
            ("iou_kind", IOU_LOSSES),
            ("iou_supervise", SUPERVISIONS),
            ("round_reduction", _REDUCTIONS),
        ):
            if getattr(self, name) not in known:
                raise UnknownNameError(explain(f"{name}={getattr(self, name)!r}", f"one of {', '.join(known)}"))

    @property
    def needs_meant(self) -> bool:
        """Whether batches have to tell what each click may have meant."""
        return self.expected_iou or self.supervise_meant

    @property
    def total_rounds(self) -> int:
        """Rounds in all."""
        return self.num_rounds + self.mask_only_rounds

    def bring_click(self, place: float) -> tuple[bool, ...]:
        """Which of the rounds after the first bring a click.

        Args:
            place: In [0, 1): where, among those rounds, the one without a prompt stands that is not the last.

        Example:
            >>> ClickRecipe(num_rounds=4, mask_only_rounds=2).bring_click(0.3)
            (True, False, True, True, False)
        """
        clicks = [True] * (self.num_rounds - 1)
        if self.mask_only_rounds == 2:
            clicks.insert(int(place * (len(clicks) + 1)), False)
        return (*clicks, False) if self.mask_only_rounds else tuple(clicks)


SAM1_RECIPE: Final = ClickRecipe(num_rounds=9, mask_only_rounds=2, box_probability=0.5, largest_target=0.9)
"""Kirillov et al. 2023, "Segment Anything", appendix A: a click or a noisy box with equal chance, 8 clicks on
the error, two rounds without a new prompt; 11 in all. Focal : Dice : squared IoU error = 20 : 1 : 1.
"""

SAM2_RECIPE: Final = ClickRecipe(
    num_rounds=8,
    box_probability=0.5,
    multimask_boxes=False,
    truth_click_probability=0.1,
    iou_kind="l1",
    round_reduction="sum",
)
"""Ravi et al. 2024, "SAM 2", appendix D.2, and the training configuration published with it: 7 corrections, a tenth of
them anywhere in the target; a box counts as two points there and is answered with one mask; absolute IoU error of all
masks; rounds are summed. Of its four loss weights 20 : 1 : 1 : 1 the last is for a head that says whether the object is
visible, which SAM 1's decoder lacks. What is not here: mask prompts in place of first clicks, and video.
"""

RECIPES: Final = {"short": ClickRecipe(), "sam1": SAM1_RECIPE, "sam2": SAM2_RECIPE}
"""By name; "short" is the default: three rounds, as the embedded model was trained."""


def named_recipe(name: str, **changes: object) -> ClickRecipe:
    """A recipe by name, with some of its fields changed.

    Args:
        name: One of :data:`RECIPES`.
        **changes: Fields of :class:`ClickRecipe`.

    Raises:
        UnknownNameError: No recipe has this name.

    Example:
        >>> named_recipe("sam1", num_rounds=3).total_rounds
        5
    """
    if name not in RECIPES:
        raise UnknownNameError(explain(f"no recipe is called {name!r}", f"one of {', '.join(RECIPES)}"))
    return replace(RECIPES[name], **changes)  # type: ignore[arg-type]
