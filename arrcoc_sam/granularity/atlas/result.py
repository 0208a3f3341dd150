"""The outcome of an atlas: tables, and what they stand on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from arrcoc_sam.errors import DataError, explain
from arrcoc_sam.granularity.claims import Claims
from arrcoc_sam.granularity.result import ABSTAIN
from arrcoc_sam.hierarchy.levels import LEVELS
from arrcoc_sam.report.writing import replacing, write_text

__all__ = ["MODEL", "AtlasResult", "heads_frame"]

MODEL = "model"
"""The group of the source that is judged; the others are controls."""

_TABLES = ("heads", "images", "ablation")


@dataclass(frozen=True)
class AtlasResult:
    """Claims about every map of a source, its controls, and what the claims hang on.

    Attributes:
        heads: One row a map of every group (the judged source, "model", then controls): map, layer and head (-1 where
            the name holds none), the mean of each metric and of the area on the grid a level, z, p and max-T p, q, z on
            the selecting and the reporting half, the images that have the level, the level chosen, its lead and
            interval, the claim or "abstain" with the reason, and the mass on prefix tokens and sinks.
        images: One row an image: prompts, how many of them the grid can measure, and the error if it could not be read.
        ablation: One row a set of thresholds: the share of prompts that are measurable, the share of maps claimed at
            each level, and how many of the claims agree with those of the first row, which are the atlas's.
        info: How it was made: metric, draws, rates, seed, description.
    """

    heads: pd.DataFrame
    images: pd.DataFrame
    ablation: pd.DataFrame
    info: dict[str, Any]

    @property
    def num_images(self) -> int:
        """Images behind the claims: those with a level that the grid can measure."""
        return int((self.images["measurable"] > 0).sum())

    @property
    def unmeasurable_share(self) -> float:
        """Share of the prompts whose levels the grid can't tell apart; they count for nothing."""
        total = self.images["prompts"].sum()
        return float(1 - self.images["measurable"].sum() / total) if total else float("nan")

    @property
    def abstained_share(self) -> float:
        """Share of the judged maps of which nothing is claimed."""
        return float((self.of()["level"] == ABSTAIN).mean())

    def of(self, group: str = MODEL) -> pd.DataFrame:
        """The rows of one group."""
        return self.heads[self.heads["group"] == group]

    def grid(self, column: str, group: str = MODEL) -> pd.DataFrame:
        """A column as a table of layers (rows) by heads (columns); NaN where there is no such head.

        Raises:
            DataError: The maps' names hold no layer and head.
        """
        rows = self.of(group)
        if (rows["layer"] < 0).any():
            came = f"the map {rows['map'].iloc[0]!r} of {group!r} names no layer"
            raise DataError(explain(came, "names such as L03.H07", "use .heads"))
        return rows.pivot(index="layer", columns="head", values=column)

    def save(self, folder: str | Path) -> Path:
        """Write the tables as Parquet and the rest as JSON, each file whole or not at all.

        Raises:
            OutputError: The folder can't be written.
        """
        target = Path(folder).expanduser()
        for name in _TABLES:
            with replacing(target / f"{name}.parquet") as draft:
                getattr(self, name).to_parquet(draft, index=False)
        write_text(target / "atlas.json", json.dumps(self.info, indent=1))
        return target

    @classmethod
    def load(cls, folder: str | Path) -> AtlasResult:
        """Read what :meth:`save` wrote.

        Raises:
            DataError: The folder holds no atlas.
        """
        source = Path(folder).expanduser()
        try:
            tables = {name: pd.read_parquet(source / f"{name}.parquet") for name in _TABLES}
            info = json.loads((source / "atlas.json").read_text())
        except (OSError, ValueError) as error:
            raise DataError(
                explain(f"{source} holds no atlas: {error}", "a folder that an atlas was saved in")
            ) from error
        return cls(**tables, info=info)


def heads_frame(
    group: str,
    names: Sequence[str],
    claims: Claims,
    means: Mapping[str, Float[Tensor, "N 3"]],
    *,
    areas: Float[Tensor, " 3"],
    sinks: Float[Tensor, " N"],
    prefix: Float[Tensor, " N"] | None,
    toroidal: Float[Tensor, " N"] | None,
) -> pd.DataFrame:
    """The rows of :attr:`AtlasResult.heads` of one group."""
    places = [layer_and_head(name) for name in names]
    columns: dict[str, Any] = {
        "group": group,
        "map": list(names),
        "layer": [layer for layer, _ in places],
        "head": [head for _, head in places],
    }
    by_level: dict[str, Tensor] = {
        **means,
        "grid_area": areas.expand(len(names), -1),
        "z": claims.z,
        "p": claims.p_level,
        "selection_z": claims.selection_z,
        "report_z": claims.report_z,
        "images": claims.images,
    }
    for name, values in by_level.items():
        columns |= {f"{name}_{level}": values[:, number].cpu().numpy() for number, level in enumerate(LEVELS)}
    columns |= {
        "p_any": claims.p_any.cpu().numpy(),
        "q_value": claims.q_value.cpu().numpy(),
        "top": np.array(LEVELS, dtype=object)[claims.top.cpu().numpy()],
        "gap": claims.gap.cpu().numpy(),
        "gap_low": claims.gap_interval[:, 0].cpu().numpy(),
        "gap_high": claims.gap_interval[:, 1].cpu().numpy(),
        "level": claims.level,
        "reason": claims.reason,
        "sink_mass": sinks.cpu().numpy(),
        "prefix_mass": np.nan if prefix is None else prefix.cpu().numpy(),
        "p_toroidal": np.nan if toroidal is None else toroidal.cpu().numpy(),
    }
    return pd.DataFrame(columns)


def layer_and_head(name: str) -> tuple[int, int]:
    """Numbers of layer and head in a map's name, -1 for what it does not hold.

    Example:
        >>> layer_and_head("L03.H07"), layer_and_head("L11.rollout"), layer_and_head("balanced")
        ((3, 7), (11, -1), (-1, -1))
    """
    layer, _, head = name.partition(".")
    return _number(layer, "L"), _number(head, "H")


def _number(text: str, letter: str) -> int:
    return int(text[1:]) if text[:1] == letter and text[1:].isdigit() else -1
