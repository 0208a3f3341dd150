"""What ``filter`` tells of what became of the masks."""

from __future__ import annotations

from arrcoc_sam.cli.console import noted, out, print_json, print_table
from arrcoc_sam.cli.skipped import MOST_LISTED, masks_left_out, skipped_json
from arrcoc_sam.quality.filter_run import FilterSummary, beside

__all__ = ["tell_filtered"]

_SHOWN_CLASSES = 12


def tell_filtered(summary: FilterSummary, *, as_json: bool) -> None:
    """Tables and counts on the screen, or one JSON document.

    Args:
        summary: Of the masks.
        as_json: The document.
    """
    record, judgement = summary.record, summary.judgement
    for note in summary.notes:
        noted(note)
    if as_json:
        listed = masks_left_out(summary.unscored.head(MOST_LISTED), record["dataset"])
        print_json(record | skipped_json(listed, number=len(summary.unscored)))
        return
    reasons = [(r["rule"], f"{r['failed']:,}", f"{r['alone']:,}") for r in record["reasons"]]
    columns = ["rule", "fail it", "fail it alone"]
    print_table("Masks by the rules that they fail", columns, reasons, to=out(), right=columns[1:])
    rows = [
        (str(row["category"]), f"{row['masks']:,}", f"{row['dropped']:,}", f"{100 * row['dropped_share']:.1f} %")
        for row in judgement.by_class(summary.scores).head(_SHOWN_CLASSES).to_dict("records")
    ]
    columns = ["class", "masks", "dropped", "share"]
    print_table("What is dropped of each class", columns, rows, to=out(), right=columns[1:])
    if record["unscored_classes"]:
        bare = [(name, f"{number:,}") for name, number in record["unscored_classes"].items()][:_SHOWN_CLASSES]
        print_table("Without a score", ["class", "masks"], bare, to=out(), right=["masks"])
    words = f"{record['num_kept']:,} of {record['num_scored']:,} masks stay"
    if record["num_unscored"]:
        fate = "stay, too" if record["unscored_kept"] else "are dropped"
        words += f"; {record['num_unscored']:,} have no score and {fate} (most often: {record['unscored_reason']})"
    out().print(f"{words}.", soft_wrap=True, markup=False)
    if summary.out is None:
        out().print("Dry run: nothing is written.")
    else:
        out().print(f"Data set: {summary.out}", soft_wrap=True, markup=False)
        out().print(f"Report: {beside(summary.out, 'report.html')}", soft_wrap=True, markup=False)
