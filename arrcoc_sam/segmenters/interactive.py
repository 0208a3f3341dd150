"""InteractiveSession: one object of one image, prompted step by step as SAM was trained to be."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from arrcoc_sam.errors import DataError, EmbeddingMismatchError, InputError, ShapeError, describe, explain
from arrcoc_sam.images import ImageInput, load_image
from arrcoc_sam.inputs import Coordinates, as_coordinates, as_count
from arrcoc_sam.prompts import Prompts
from arrcoc_sam.segmenters.base import Segmenter
from arrcoc_sam.segmenters.interactive_file import no_session, read_session, restored_step, write_session
from arrcoc_sam.segmenters.interactive_step import InteractiveStep

__all__ = ["InteractiveSession", "InteractiveStep"]


class InteractiveSession:
    """Clicks and boxes on one image, answered step by step.

    The first prompt is answered with three masks, of which the best predicted one stands for the step until another is
    chosen. From then on the logits of the step before are fed back along with all prompts, and one mask answers.

    Example:
        >>> import numpy as np
        >>> from arrcoc_sam.segmenters import load_segmenter
        >>> session = InteractiveSession(load_segmenter("tiny", device="cpu"), np.zeros((60, 80, 3), np.uint8))
        >>> session.click(20, 30).candidates.token_index.tolist()
        [1, 2, 3]
        >>> session.click(50, 30, label=0).candidates.token_index.tolist()
        [0]
        >>> session.refine().labels, len(session)
        ((1, 0), 3)
        >>> session.undo(), len(session)
        (True, 2)

    Reference:
        Kirillov et al. 2023, Segment Anything, appendix A (the interactive recipe).
    """

    def __init__(self, segmenter: Segmenter, image: ImageInput) -> None:
        """Encode the image.

        Args:
            segmenter: Answers.
            image: A path, a PIL image or an H×W×3 uint8 array.

        Raises:
            ImageReadError: A file is missing or no image.
            InputError: The image is too small for the segmenter.
        """
        pixels = load_image(image)
        self.segmenter = segmenter
        self.image_hash = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
        with torch.no_grad():
            self.embedding = segmenter.encode(pixels)
        self._steps: list[InteractiveStep] = []

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.embedding.sizes_hw[0]

    @property
    def steps(self) -> tuple[InteractiveStep, ...]:
        """All steps, the first one first."""
        return tuple(self._steps)

    @property
    def step(self) -> InteractiveStep:
        """The last step.

        Raises:
            InputError: Nothing has been asked yet.
        """
        if not self._steps:
            raise InputError(explain("a session without a step", "a click or a box first", "call click(x, y)"))
        return self._steps[-1]

    # --- asking -----------------------------------------------------------------------------------------------------

    def click(self, x: float | int, y: float | int, label: int = 1) -> InteractiveStep:
        """Add a click at a pixel: label 1 on the object, 0 on what is not the object.

        Raises:
            InputError: Outside the image, or another label. The session is as it was.
        """
        return self.prompt([(x, y)], [label])

    def box(self, x0: float | int, y0: float | int, x1: float | int, y1: float | int) -> InteractiveStep:
        """Set the box, in place of one that was there.

        Raises:
            InputError: Outside the image, or one that ends before it begins. The session is as it was.
        """
        return self.prompt(box_xyxy=(x0, y0, x1, y1))

    def prompt(
        self,
        points_xy: Coordinates = (),
        labels: Sequence[int] | Tensor | np.ndarray | None = None,
        box_xyxy: Coordinates | None = None,
    ) -> InteractiveStep:
        """Add several clicks, a box, or both, in one step.

        Args:
            points_xy: (P, 2) pixel indices (x, y).
            labels: One a click; all foreground by default.
            box_xyxy: A box (4,), or None to keep the one there is.

        Returns:
            The step.

        Raises:
            InputError: Neither a click nor a box, or one outside the image. The session is as it was.
            ShapeError: No points (P, 2), or no box of four numbers.
        """
        clicks = as_coordinates(points_xy, 2, "points_xy").tolist() if len(points_xy) else []
        if clicks and not isinstance(clicks[0], list):
            raise ShapeError(explain(f"points_xy is {describe(points_xy)}", "(P, 2)", "one click: [(x, y)]"))
        marks = [1] * len(clicks) if labels is None else list(labels)
        if len(marks) != len(clicks) or any(mark not in (0, 1) for mark in marks):
            raise InputError(explain(f"labels={labels!r} of {len(clicks)} points", "1 or 0 for each"))
        if not clicks and box_xyxy is None:
            raise InputError(explain("a step without a click or a box", "one of them", "refine() goes on without"))
        before = self._steps[-1] if self._steps else None
        new = tuple((x, y) for x, y in clicks)
        box = None if box_xyxy is None else tuple(as_coordinates(box_xyxy, 4, "box_xyxy").tolist())
        if box is None and before is not None:
            box = before.box_xyxy
        points = new if before is None else before.points_xy + new
        new_marks = tuple(int(mark) for mark in marks)
        all_marks = new_marks if before is None else before.labels + new_marks
        return self._ask("prompt", points, all_marks, box)

    def refine(self, rounds: int = 1) -> InteractiveStep:
        """Ask again with nothing new but the last step's logits.

        Args:
            rounds: How often; a step each.

        Raises:
            InputError: Nothing has been asked yet, or less than one round.
        """
        for _ in range(as_count(rounds, "rounds")):
            last = self.step
            self._ask("refine", last.points_xy, last.labels, last.box_xyxy)
        return self.step

    def choose(self, token: int) -> InteractiveStep:
        """Let another of the three masks of the first prompt stand for it, such as ``levels.token_index`` names it.

        Raises:
            InputError: No step, one that was answered with a single mask, or no such token.
        """
        last = self.step
        if not last.ambiguous or token not in (1, 2, 3):
            came = f"token {token} of a step answered with {'three masks' if last.ambiguous else 'one mask'}"
            raise InputError(explain(came, "1, 2 or 3 after the first prompt"))
        chosen = InteractiveStep("choose", last.points_xy, last.labels, last.box_xyxy, last.decoded, int(token), True)
        self._steps.append(chosen)
        return chosen

    def undo(self) -> bool:
        """Take the last step back; False where there is none."""
        if self._steps:
            self._steps.pop()
            return True
        return False

    def reset(self) -> None:
        """Take all steps back; the image stays encoded."""
        self._steps.clear()

    def _ask(
        self,
        action: str,
        points_xy: tuple[tuple[float, float], ...],
        labels: tuple[int, ...],
        box_xyxy: tuple[float, float, float, float] | None,
    ) -> InteractiveStep:
        before = self._steps[-1] if self._steps else None
        prompts = Prompts(
            points_xy=torch.tensor([points_xy], dtype=torch.float64) if points_xy else None,
            labels=torch.tensor([labels]) if points_xy else None,
            boxes_xyxy=None if box_xyxy is None else torch.tensor([box_xyxy], dtype=torch.float64),
            mask_logits=None if before is None else before.logits[None].cpu(),
        )
        with torch.no_grad():
            decoded = self.segmenter.decode(self.embedding, prompts, "all")
        first = before is None
        token = 1 + int(decoded.for_tokens((1, 2, 3)).predicted_iou[0].argmax()) if first else 0
        step = InteractiveStep(action, points_xy, labels, box_xyxy, decoded, token, first)
        self._steps.append(step)
        return step

    # --- keeping ----------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write all steps to a file (safetensors), whole or not at all; the image is not in it, but its hash is.

        Raises:
            OutputError: The file can't be written.
        """
        target = Path(path).expanduser()
        facts = {
            "segmenter": self.segmenter.name,
            "checkpoint_hash": self.segmenter.checkpoint_hash,
            "image_hash": self.image_hash,
            "size_hw": self.size_hw,
        }
        write_session(target, self._steps, facts)
        return target

    @classmethod
    def load(cls, path: str | Path, segmenter: Segmenter, image: ImageInput) -> InteractiveSession:
        """A session as it was saved, ready to go on.

        Args:
            path: What :meth:`save` wrote.
            segmenter: The one that answered.
            image: The image that it was about.

        Raises:
            DataError: The file is missing or no session, or the image is another one.
            EmbeddingMismatchError: The segmenter has other weights.
        """
        state, tensors = read_session(Path(path).expanduser())
        if state["checkpoint_hash"] != segmenter.checkpoint_hash:
            came = f"a session of {state['segmenter']} with the weights {state['checkpoint_hash'][:12]}…"
            expected = f"one of {segmenter.name}, {segmenter.checkpoint_hash[:12]}…"
            raise EmbeddingMismatchError(explain(came, expected, "load the segmenter that it was saved with"))
        session = cls(segmenter, image)
        if state["image_hash"] != session.image_hash:
            came = f"a session about another image, of height {state['size_hw'][0]} and width {state['size_hw'][1]}"
            raise DataError(explain(came, "the image that it was saved with"))
        try:
            session._steps = [
                restored_step(number, step, tensors, transforms=session.embedding.transforms, device=segmenter.device)
                for number, step in enumerate(state["steps"])
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise no_session(Path(path)) from error
        return session
