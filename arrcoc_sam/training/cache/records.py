"""What a hierarchy cache holds: one row a click, in Parquet shards, beside a file that says what made them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from arrcoc_sam.errors import DataError, explain
from arrcoc_sam.report.writing import replacing, write_text

__all__ = [
    "FORMAT",
    "MANIFEST",
    "SCHEMA",
    "CachePlan",
    "read_faults",
    "read_shard",
    "reading",
    "shard_fault",
    "shard_path",
    "write_shard",
]

FORMAT = 1
"""Raised whenever an older cache can no longer be read."""

MANIFEST = "cache.json"

_FAULTS = b"arrcoc_sam.faults"


def _three(kind: pa.DataType) -> pa.DataType:
    return pa.list_(kind, 3)


SCHEMA = pa.schema(
    [
        ("image", pa.string()),  # relative to the plan's root
        ("image_number", pa.int32()),
        ("prompt", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("x", pa.float64()),
        ("y", pa.float64()),
        ("counts", _three(pa.string())),  # COCO's run lengths of whole, part, subpart
        ("score", _three(pa.float32())),  # predicted IoU, raw
        ("stability", _three(pa.float32())),  # NaN where nobody decoded
        ("quality", _three(pa.float32())),  # lower bound of MaskQualityEstimator, NaN where not asked for
        ("token_index", _three(pa.int16())),
        ("distinct", _three(pa.bool_())),
        ("valid", pa.bool_()),
        ("truth", pa.string()),  # run lengths of the annotated mask behind the click, null without one
        ("truth_iou", _three(pa.float32())),  # of each level with it, NaN without one
    ]
)


@dataclass(frozen=True)
class CachePlan:
    """Everything that determines what a cache holds.

    Attributes:
        segmenter: What made the masks; "truth" for annotated ones.
        checkpoint_hash: Of its weights.
        prompts: The clicks, described.
        root: The folder that image names are relative to.
        images_sha256: Over the names of the images, in order; not over what they show.
        num_images: How many there are.
        images_per_shard: How many a shard is about: what a killed run has to do again, at most.
        quality: Whether the levels' masks were scored by ``MaskQualityEstimator``.
    """

    segmenter: str
    checkpoint_hash: str
    prompts: dict[str, Any]
    root: str
    images_sha256: str
    num_images: int
    images_per_shard: int
    quality: bool

    @property
    def num_shards(self) -> int:
        """Number of Parquet files."""
        return -(-self.num_images // self.images_per_shard)

    def write(self, folder: Path, versions: dict[str, str]) -> None:
        """Write the manifest."""
        record = {"format": FORMAT, **asdict(self), "versions": versions}
        write_text(folder / MANIFEST, json.dumps(record, indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> CachePlan | None:
        """The plan of a folder; None where there is no manifest.

        Raises:
            DataError: The manifest is damaged, or of another format.
        """
        path = folder / MANIFEST
        if not path.is_file():
            return None
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            version = record.pop("format")
            record.pop("versions")
            plan = cls(**record)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(explain(f"{path} can't be read ({error})", "the manifest of a hierarchy cache")) from error
        if version != FORMAT:
            raise DataError(explain(f"{path} has format {version}", f"format {FORMAT}", "build the cache again"))
        return plan

    def moved(self, folder: Path, root: Path) -> CachePlan:
        """The plan of a cache whose pictures lie in another folder by now.

        Args:
            folder: Of the cache.
            root: Of the pictures.

        Raises:
            DataError: The first picture is not there; a shard is damaged.
        """
        shards = (read_shard(shard_path(folder, number), ["image"]) for number in range(self.num_shards))
        first = next((shard["image"][0].as_py() for shard in shards if len(shard)), None)
        if first is not None and not (root / first).is_file():
            mend = f"name the folder that {self.root} was when the cache was built"
            raise DataError(explain(f"there is no {first} in images={root}", "the pictures of the cache", mend))
        return replace(self, root=str(root))

    def differences(self, other: CachePlan) -> list[str]:
        """Where another plan differs, in words."""
        mine, theirs = asdict(self), asdict(other)
        return [f"{name} {theirs[name]!r}, not {mine[name]!r}" for name in mine if mine[name] != theirs[name]]


def names_digest(names: Sequence[str]) -> str:
    """SHA-256 over names in order."""
    return sha256("\n".join(names).encode()).hexdigest()


def shard_path(folder: Path, number: int) -> Path:
    """Where a shard lies."""
    return folder / f"shard-{number:05d}.parquet"


def shard_fault(path: Path) -> str | None:
    """Why a shard that is there can't be used, by its footer alone; None where nothing is wrong with that."""
    try:
        names = pq.read_schema(path).names
    except (OSError, pa.ArrowException) as error:
        return _damage(error)
    absent = set(SCHEMA.names) - set(names)
    return f"lacks {sorted(absent)}" if absent else None


def _damage(error: Exception) -> str:
    return f"is damaged: {' '.join(str(error).split())}"


def write_shard(path: Path, rows: Sequence[dict[str, Any]], faults: Sequence[tuple[str, str]]) -> None:
    """Write a shard, whole or not at all, with what could not be done and why."""
    schema = SCHEMA.with_metadata({_FAULTS: json.dumps([list(fault) for fault in faults]).encode()})
    columns = {name: [row[name] for row in rows] for name in SCHEMA.names}
    with replacing(path) as temporary:
        table = pa.table(columns, schema=schema)
        # Without a checksum, damage inside a page can read as other values.
        pq.write_table(table, temporary, compression="zstd", row_group_size=4096, write_page_checksum=True)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Around whatever reads the inside of a shard.

    Raises:
        DataError: The inside is damaged, which the footer, all that a build looks at, does not show.
    """
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        mend = "delete this file and run arrcoc-sam cache again, which computes what is missing"
        raise DataError(explain(f"{path} {_damage(error)}", "a whole shard", mend)) from error


def read_shard(path: Path, columns: Sequence[str]) -> pa.Table:
    """Columns of a shard.

    Raises:
        DataError: It is damaged.
    """
    with reading(path):
        return pq.read_table(path, columns=list(columns), page_checksum_verification=True)


def read_faults(path: Path) -> list[tuple[str, str]]:
    """Images of a shard that could not be done, and why."""
    metadata = pq.read_schema(path).metadata or {}
    return [(name, reason) for name, reason in json.loads(metadata.get(_FAULTS, b"[]"))]
