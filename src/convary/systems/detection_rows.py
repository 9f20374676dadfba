# SPDX-License-Identifier: Apache-2.0
"""Train the detectors of published tables on COCO: each row is a run of its published schedule for every seed."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convary.errors import ConfigError, DataError
from convary.files import read_tensors
from convary.methods import KernelWarehouse
from convary.models.architecture import COMPARED
from convary.papers import Row, Table
from convary.systems.detection import DetectionAdamWConfig, DetectionPublishedConfig
from convary.train.fit import fit
from convary.train.progress import Progress
from convary.train.reproduce import Key, arm_name

PREFIX = "coco:"
EPOCHS = 12
SCHEDULES = {kind.name: kind for kind in (DetectionPublishedConfig, DetectionAdamWConfig)}
_LONG = 1333 / 800  # the longest side over the shorter one, as published
_SCORES = ("box_ap", "mask_ap")


@dataclass(frozen=True, kw_only=True)
class DetectorPlan:
    """What is trained, a run for each seed of each row; and which rows are not, and why."""

    runs: dict[Key, list[DetectionPublishedConfig]]
    left_out: dict[Key, str]


def plan(
    tables: Iterable[Table], out: Path, data: Path, weights: Iterable[Path], seeds: int, **given: Any
) -> DetectorPlan:
    """What training the detectors of some tables means; nothing is trained yet.

    Args:
        tables: With the rows.
        out: Folder; every run gets one in it.
        data: Folder in COCO's layout.
        weights: What backbones start from: checkpoints of ``convary compare`` or ``reproduce``, weight files of
            torchvision or timm that begin with the network's name, or folders that have some.
        seeds: How many times each row is trained.
        given: Fields of ``DetectionPublishedConfig``, and ``epochs`` and ``image_size``.

    Raises:
        ConfigError: no row can be trained, a row has no weights, or a value that cannot work.
    """
    epochs, size = given.pop("epochs", None), given.pop("image_size", None)
    if epochs is not None:
        given["steps"] = max(1, round(epochs * DetectionPublishedConfig.steps / EPOCHS))
    if size is not None:
        given |= {"short": (size,), "long": round(size * _LONG)}
    found = list(_candidates(weights))
    runs: dict[Key, list[DetectionPublishedConfig]] = {}
    left_out: dict[Key, str] = {}
    for table in tables:
        for row in table.rows:
            if row.detector is None or row.backbone is None:
                left_out[table.name, row.name] = row.obstacle or "a classifier: --data folder:PATH trains it"
                continue
            start = _start(row, found)
            runs[table.name, row.name] = [
                SCHEDULES[row.schedule](
                    out=out / f"{table.name}-{row.name}" / f"seed-{seed}", data=data, weights=start, seed=seed,
                    detector=row.detector, backbone=row.backbone, method=_method(row), **given,
                )
                for seed in range(seeds)
            ]  # fmt: skip
    if not runs:
        told = "; ".join(dict.fromkeys(f"{name}: {reason}" for (_, name), reason in left_out.items()))
        raise ConfigError(f"none of these rows can be trained on COCO: {told}")
    return DetectorPlan(runs=runs, left_out=left_out)


def train(planned: DetectorPlan, progress: Progress | None = None) -> dict[Key, dict[str, Any]]:
    """Train the rows, or resume their training; what was reached, by table and row.

    Returns:
        Of each row its COCO AP in percent, ``box_ap`` and of Mask R-CNNs ``mask_ap``, each with a ``_std`` over the
        seeds (None for one), ``seeds``, ``data`` and ``training``.
    """
    reached = {}
    for key, configs in planned.runs.items():
        scores = [fit(config, progress)["scores"] for config in configs]
        entry: dict[str, Any] = {}
        for name in _SCORES:
            if values := [100 * found[name] for found in scores if name in found]:
                entry[name] = statistics.fmean(values)
                entry[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else None
        first = configs[0]
        changed = "" if first.steps == DetectionPublishedConfig.steps else f"; {first.steps} steps instead of 87960"
        told = {"seeds": len(configs), "data": f"{PREFIX}{first.data}", "training": f"{first.name}{changed}"}
        reached[key] = {**entry, **told, "folder": first.out.parent.name}
    return reached


def _method(row: Row) -> str:
    return "static" if row.method is None else arm_name(row.method)


def _candidates(weights: Iterable[Path]) -> Iterator[tuple[Path, dict[str, Any] | None]]:
    """Files, with what a checkpoint of compare says of its network."""
    for path in weights:
        if not path.exists():
            raise DataError(f"there is no {path}; give --weights files, or folders that have some")
        files = [path] if path.is_file() else sorted({*path.rglob("seed-0/checkpoint.pt"), *path.glob("*.pth")})
        for file in files:
            about = None
            if file.name == "checkpoint.pt":
                content = read_tensors(file, "give a checkpoint that convary wrote")
                if content.get("format") != COMPARED:
                    continue
                about = content["architecture"]
            yield file, about


def _start(row: Row, found: list[tuple[Path, dict[str, Any] | None]]) -> Path:
    """The file that a row starts from: of its own method, else of the static network.

    Temperatures are at their end here, where KernelWarehouse is no longer what the static network computes.
    """
    own, alone = None if row.method is None else row.method.to_json(), isinstance(row.method, KernelWarehouse)
    for method in dict.fromkeys((own,) if alone else (own, None)):
        for path, about in found:
            if about is not None and about["model"] == f"torchvision:{row.backbone}" and about["method"] == method:
                return path
    for path, about in found:
        if about is None and not alone and path.name.replace("-", "_").startswith(str(row.backbone)):
            return path
    told = _method(row) if own is None or alone else f"{_method(row)} or static"
    library = "" if alone else f", or a file of torchvision or timm whose name begins with {row.backbone}"
    raise ConfigError(
        f"{row.name} starts from a trained {row.backbone}, {told}; give --weights FILE or FOLDER: a checkpoint of "
        f"convary reproduce{library}"
    )
