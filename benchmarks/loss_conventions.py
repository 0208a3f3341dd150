"""Where the focal and Dice losses of other libraries differ from ours, measured.

python benchmarks/loss_conventions.py            prints the table
python benchmarks/loss_conventions.py --write    puts it into docs/loss_conventions.md
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from loss_peers import Loss, Peer, peers
from torch import Tensor

from arrcoc_sam.losses import functional as LF
from arrcoc_sam.masks import area_average

DOCUMENT = Path(__file__).parents[1] / "docs" / "loss_conventions.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def discs() -> Tensor:
    """Six discs of 30 to 90 pixels' radius in 256 × 256."""
    y, x = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    return torch.stack([(y - 100 - 5 * i) ** 2 + (x - 120 + 7 * i) ** 2 < (30 + 12 * i) ** 2 for i in range(6)])


def predictions(targets: Tensor) -> Tensor:
    """Logits of a model that is mostly right: the target's side by 4, and unit noise."""
    noise = torch.randn(targets.shape, generator=torch.Generator().manual_seed(0))
    return noise + 8 * targets.float() - 4


def deviation(theirs: Loss | None, ours: Loss, targets: Tensor) -> str:
    """How far the peer's number is from ours, relative, as text."""
    if theirs is None:
        return "–"
    logits = predictions(targets)
    expected = ours(logits, targets).item()
    relative = theirs(logits, targets.float()).item() / expected - 1
    if abs(relative) < 1e-5:
        return "equal"
    return f"{100 * relative:+.{0 if abs(relative) >= 0.1 else 1}f} %"


def gradient_at_half(focal: Callable[..., Tensor]) -> str:
    """Whether γ = ½ has a gradient when some pixels are confidently right."""
    logits = torch.tensor([[[200.0, -200.0], [0.5, -0.5]]], requires_grad=True)
    focal(logits, torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])).backward()
    return "finite" if logits.grad is not None and logits.grad.isfinite().all() else "NaN"


def half_precision(dice: Loss | None) -> str:
    """Dice of 512 × 512 logits of 10 and targets of 1 in float16; 4.5e-5·n/(2n + 1) = 2.27e-05 is right."""
    if dice is None:
        return "–"
    value = dice(torch.full((1, 512, 512), 10.0, dtype=torch.float16), torch.ones(1, 512, 512, dtype=torch.float16))
    return f"{value.float().item():.3g}"


def near_perfect(dice: Loss | None) -> str:
    """Dice in float32 of 256 × 256 logits of 16 and targets of 1, as a deviation from float64."""
    if dice is None:
        return "–"
    logits, targets = torch.full((1, 256, 256), 16.0), torch.ones(1, 256, 256)
    relative = dice(logits, targets).item() / LF.dice_loss(logits.double(), targets).item() - 1
    return "equal" if abs(relative) < 1e-5 else f"{100 * relative:+.0f} %"


def focal_at_half() -> dict[str, Callable[..., Tensor]]:
    """The peers' focal losses at γ = ½."""
    from kornia.losses import binary_focal_loss_with_logits
    from monai.losses import FocalLoss
    from segmentation_models_pytorch.losses import FocalLoss as SmpFocalLoss
    from torchvision.ops import sigmoid_focal_loss
    from transformers.loss import loss_for_object_detection as detr

    return {
        "torchvision": lambda x, t: sigmoid_focal_loss(x, t, gamma=0.5, reduction="mean"),
        "transformers": lambda x, t: detr.sigmoid_focal_loss(x.flatten(1), t.flatten(1), len(x), gamma=0.5),
        "monai": lambda x, t: FocalLoss(gamma=0.5, alpha=0.25)(x.unsqueeze(1), t.unsqueeze(1)),
        "segmentation-models-pytorch": lambda x, t: SmpFocalLoss("binary", alpha=0.25, gamma=0.5)(x, t),
        "kornia": lambda x, t: binary_focal_loss_with_logits(
            x.unsqueeze(1), t.unsqueeze(1), alpha=0.25, gamma=0.5, reduction="mean"
        ),
    }


def row(name: str, focal: Loss | None, dice: Loss | None, at_half: str, note: str) -> str:
    """One line of the table."""
    hard = area_average(discs(), (64, 64)) > 0.5
    soft = area_average(discs(), (16, 16))
    empty = torch.zeros(6, 64, 64, dtype=torch.bool)
    cells = [
        name,
        deviation(focal, LF.sigmoid_focal_loss, hard),
        deviation(focal, LF.sigmoid_focal_loss, soft),
        at_half,
        deviation(dice, LF.dice_loss, hard),
        deviation(dice, LF.dice_loss, soft),
        deviation(dice, LF.dice_loss, empty),
        near_perfect(dice),
        half_precision(dice),
        note,
    ]
    return "| " + " | ".join(cells) + " |"


def table() -> str:
    """The measured table, as Markdown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        known = peers()
        half = focal_at_half()
        rows = [row(p.name, p.focal, p.dice, gradient_at_half(half[p.distribution]), p.note) for p in known]
    ours = gradient_at_half(lambda x, t: LF.sigmoid_focal_loss(x, t, gamma=0.5))
    rows.insert(0, row("arrcoc_sam", LF.sigmoid_focal_loss, LF.dice_loss, ours, "“none” is per mask"))
    names = ["library", "focal, hard", "focal, soft", "∂focal, γ = ½", "Dice, hard", "Dice, soft", "Dice, empty"]
    names += ["Dice, near 0", "Dice, fp16", "note"]
    head = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    return "\n".join([versions(known), "", *head, *rows])


def versions(known: list[Peer]) -> str:
    """The line that says what was measured."""
    named = ["torch", *dict.fromkeys(peer.distribution for peer in known)]
    return "Measured with " + ", ".join(f"{name} {version(name).partition('+')[0]}" for name in named) + "."


def with_table(document: str, measured: str) -> str:
    """The document with the part between its marks replaced."""
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{measured}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write the table into {DOCUMENT.name}")
    arguments = parser.parse_args()
    measured = table()
    if arguments.write:
        DOCUMENT.write_text(with_table(DOCUMENT.read_text(), measured))
    else:
        print(measured)


if __name__ == "__main__":
    main()
