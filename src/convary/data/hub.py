# SPDX-License-Identifier: Apache-2.0
"""``hf:PATH`` or ``hf:NAME``: an image set of Hugging Face ``datasets``, saved on disk, in files, or by name."""

from __future__ import annotations

import dataclasses
import importlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convary.data.dataset import DataSet
from convary.data.image import open_image
from convary.data.normalisation import MEAN, STD
from convary.data.pictures import PictureSplit, settled
from convary.data.reading import Reading
from convary.errors import DataError

TESTED = ("validation", "valid", "val", "dev", "test")  # first come; the labels of ImageNet's "test" are not known
HELD_OUT = 0.1


@dataclass(frozen=True, eq=False, kw_only=True)
class HubSplit(PictureSplit):
    """Rows of a table of ``datasets``.

    Attributes:
        table: Of rows that have an encoded image, or the path of one.
        column: Where.
        rows: (N,) which ones.
        name: Of the split, for messages.
    """

    table: Any
    column: str
    rows: Tensor
    name: str

    def decoded(self, index: int) -> Image.Image:
        """One image; raises DataError naming the row of a broken one."""
        row = int(self.rows[index])
        found, name = self.table[row][self.column] or {}, f"row {row} of {self.name}"
        if found.get("bytes") is not None:
            return open_image(_Encoded(found["bytes"]), name=name)
        if not found.get("path"):
            raise DataError(f"{name} has no image; remove it")
        return open_image(Path(found["path"]), name=f"{name}, {found['path']},")

    def take(self, index: Tensor) -> HubSplit:
        """The part with only the images of ``index`` (M,), in that order."""
        return dataclasses.replace(self, rows=self.rows[index], labels=self.labels[index])


class _Encoded(io.BytesIO):
    def __repr__(self) -> str:  # Pillow's errors have it; an address would make one broken image several
        return "of these bytes"


def load_hub(what: str, size: int, reading: Reading | None = None) -> DataSet:
    """An image classification set that Hugging Face ``datasets`` reads.

    Args:
        what: A folder that ``save_to_disk`` wrote; one of files that ``load_dataset`` reads, as images in class folders
            or Parquet; or the name of a set, and after a colon its configuration. Where there are several columns of
            classes or of images, ``#label=COLUMN`` or ``#image=COLUMN`` chooses one, ``#label=L,image=I`` both.
        size: Height and width that images are brought to.
        reading: How.

    Raises:
        DataError: ``datasets`` is not installed or can't find the set; no column of images or of classes in a split, or
            several and none is chosen; images without a class; other classes in another split; a broken image.
    """
    name, reading = f"hf:{what}", reading or Reading()
    what, _, chosen = what.partition("#")
    columns = _chosen(chosen, name)
    splits = _read(what)
    if "train" not in splits:
        raise DataError(f"{name} has the splits {', '.join(splits)}; wanted are train and one of {', '.join(TESTED)}")
    tested = next((split for split in TESTED if split in splits), None)
    classes, train = _split(splits["train"], f"train of {name}", columns, reading, size)
    others, test = classes, train
    if tested is not None:
        others, test = _split(splits[tested], f"{tested} of {name}", columns, reading, size)
    if others != classes:
        other = min(set(others) ^ set(classes), default="their order")
        raise DataError(f"train and {tested} of {name} have different classes ({other}); make both the same")
    _check(train, classes, 2 if tested is None else 1)
    dataset = DataSet(
        name=name, title=Path(what).name, classes=classes, shape=(3, size, size), train=train, test=test, mean=MEAN,
        std=STD, license=splits["train"].info.license or "unknown", source=what, padding=size // 8, reading=reading,
    )  # fmt: skip
    dataset = dataset.held_out(HELD_OUT) if tested is None else dataset
    left_out: list[str] = []
    parts: list[Any] = [dataset.train, dataset.test]
    train, test = (settled(part, reading, left_out, of=name, tested=part is parts[1]) for part in parts)
    return dataclasses.replace(dataset, train=train, test=test, left_out=tuple(left_out))


def _read(what: str) -> Mapping[str, Any]:
    """The splits by name."""
    try:
        library: Any = importlib.import_module("datasets")
        load, saved = library.load_dataset, library.load_from_disk
    except (ImportError, AttributeError) as error:  # a folder of that name is a package without either
        raise DataError(f"hf:{what} needs datasets, which is not installed; run pip install datasets") from error
    path = Path(what).expanduser()
    try:
        if path.is_dir():
            is_saved = any((path / file).is_file() for file in ("dataset_dict.json", "state.json"))
            found = saved(str(path)) if is_saved else load(str(path))
        else:
            name, _, configuration = what.partition(":")
            found = load(name, configuration or None)
    except (OSError, ValueError, RuntimeError, library.exceptions.DatasetsError) as error:
        raise DataError(f"datasets can't read hf:{what}: {' '.join(str(error).split())}") from error
    return found if isinstance(found, Mapping) else {"train": found}


def _chosen(text: str, name: str) -> dict[str, str]:
    """Columns by what they are, ``label`` or ``image``, of what stands after the #."""
    parts = {kind: column for kind, _, column in (part.partition("=") for part in text.split(",") if part)}
    if any(kind not in ("label", "image") or not column for kind, column in parts.items()):
        raise DataError(f"what stands after the # of {name} is no column; write #label=COLUMN, #image=COLUMN or both")
    return parts


def _split(
    table: Any, name: str, columns: Mapping[str, str], reading: Reading, size: int
) -> tuple[tuple[str, ...], HubSplit]:
    """The classes and the images of a split."""
    library: Any = importlib.import_module("datasets")
    kinds = {"image": library.Image, "label": library.ClassLabel}
    image, label = (_column(table, kind, which, columns.get(which), name) for which, kind in kinds.items())
    classes = tuple(table.features[label].names)
    labels = np.array([-1 if value is None else value for value in table[label][:]], dtype=np.int64)
    if len(bad := np.flatnonzero((labels < 0) | (labels >= len(classes)))):
        raise DataError(f"{len(bad)} of {len(labels)} rows of {name} have no class, as row {bad[0]}; leave them out")
    split = HubSplit(
        labels=torch.from_numpy(labels), middle=reading.middle(size), skips=reading.skipped is not None,
        table=table.select_columns([image]).cast_column(image, library.Image(decode=False)), column=image,
        rows=torch.arange(len(labels)), name=name,
    )  # fmt: skip
    return classes, split


def _check(train: HubSplit, classes: tuple[str, ...], least: int) -> None:
    counts = train.labels.bincount(minlength=len(classes)).tolist()
    short = [f"{name} has {count}" for name, count in zip(classes, counts, strict=True) if count < least]
    if len(classes) < 2 or short:
        raise DataError(
            f"{train.name} must have two classes or more and at least {least} of the images in each; got "
            f"{len(classes)} classes{''.join(f', {told}' for told in short[:3])}"
        )


def _column(table: Any, kind: type, which: str, chosen: str | None, name: str) -> str:
    """The column of a feature: the one that is chosen, or else the only one."""
    found = [column for column, feature in table.features.items() if isinstance(feature, kind)]
    if chosen in found or (chosen is None and len(found) == 1):
        return chosen or found[0]
    if not found:
        raise DataError(
            f"{name} must have a column of the feature {kind.__name__}; it has none among "
            f"{', '.join(table.column_names)}: cast_column(NAME, {kind.__name__}(...)) makes one"
        )
    said = f"no column {chosen!r}" if chosen else f"{len(found)} columns"
    raise DataError(
        f"{name} has {said} of the feature {kind.__name__}; choose {' or '.join(found)}: end --data with "
        f"#{which}={found[0]}"
    )
