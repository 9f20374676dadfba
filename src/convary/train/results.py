# SPDX-License-Identifier: Apache-2.0
"""The parts of results.json."""

from __future__ import annotations

import dataclasses
import io
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convary._plan import plan
from convary._summary import summary
from convary.data import DataSet, balanced
from convary.models import fold_excitation
from convary.selector import selector
from convary.train import measure
from convary.train.arms import STATIC, Arm, checkpoint_path
from convary.train.config import CompareConfig
from convary.train.diagnose import correlations, diagnosis, routing_statistics
from convary.train.networks import architecture
from convary.train.paired import paired
from convary.train.portraits import Portraits

LATENCY_BATCHES = (1, 16)
UNTIMED: dict[str, Any] = {"latency": [], "step": None, "memory": None}  # of an entry that has not been measured
PLANNED = ("before", "after", "reason", "params_before", "params_after", "macs_before", "macs_after")
Curve = list[dict[str, Any]]


class Bench:
    """Looks at trained networks next to the static one.

    Args:
        config: What was done.
        dataset: Gives test images.
        device: Where to measure.
    """

    def __init__(self, config: CompareConfig, dataset: DataSet, device: torch.device):
        self.config, self.dataset, self.device = config, dataset, device
        self.portraits = Portraits(dataset, config.batch_size, device)
        self.static = architecture(Arm(name=STATIC), config, dataset, 0).build().to(device)

    def entry(
        self, arm: Arm, model: nn.Module, curves: dict[str, list[Curve]], heard: Callable[[str], None]
    ) -> dict[str, Any]:
        """What results.json says of an arm, but for times and memory.

        Args:
            arm: The arm.
            model: Its network of seed 0.
            curves: The learning curves of all arms, one for each seed.
            heard: Is told what starts.
        """
        model, name = fold_excitation(model.to(self.device)), arm.name  # as it is shipped
        heard("parameters and MACs")
        entry = {"name": name, **self._costs(arm, model), **UNTIMED}
        heard("routing and correlations")
        entry |= accuracy(arm, curves[name])
        if STATIC in curves and not arm.is_static:
            entry["paired"] = paired(_tops(curves[name]), _tops(curves[STATIC]))
        batch = self.config.batch_size
        entry["routing"] = [] if not arm.is_dynamic else routing_statistics(model, self.dataset, batch, self.device)
        entry["diagnosis"] = None if not arm.is_dynamic else diagnosis(model, self.dataset, batch, self.device)
        entry["correlation"] = correlations(model, self.dataset, self.device)
        entry |= self.portraits.entry(name, model, arm.method if arm.is_dynamic else None)
        return entry

    def times(self, arm: Arm, model: nn.Module, heard: Callable[[str], None]) -> dict[str, Any]:
        """What is ``UNTIMED`` in the entry of an arm, measured with its network of seed 0."""
        model, name = model.to(self.device), arm.name
        heard("training step")
        step = self._step(name, model)
        memory = measure.memory(model, *self._training_batch(), self.config)
        model = fold_excitation(model)
        heard("latency")
        latency = [{"batch": batch, **self._latency(name, model, batch)} for batch in LATENCY_BATCHES]
        return {"latency": latency, "step": step, "memory": memory}

    def finish(self, entries: list[dict[str, Any]]) -> dict[str, Any]:
        """Add to every entry on which images it and static differ; returns the pictures that entries name."""
        for entry in entries:
            if STATIC in self.portraits.said and entry["name"] != STATIC:
                entry["differs"] = self.portraits.differences(entry["name"], STATIC)
        return self.portraits.pictures()

    def _plan(self, arm: Arm) -> list[dict[str, Any]]:
        """The layers from input to output: what each one is, becomes and costs."""
        method = arm.method
        if method is None:
            return []
        static = architecture(Arm(name=STATIC), self.config, self.dataset, 0).build()
        rows = plan(
            static, method, selector(self.config.where, method), example=torch.zeros(1, *self.dataset.shape)
        ).rows
        return [{"layer": row.name, **{name: getattr(row, name) for name in PLANNED}} for row in rows]

    def _costs(self, arm: Arm, model: nn.Module) -> dict[str, Any]:
        costs, method = summary(model, self._images(1)[0]), arm.method
        return {
            "title": arm.title,
            "citation": None if method is None else method.citation,
            "config": None if method is None else json.loads(method.to_json()),
            "layers": costs.dynamic_layers,
            "plan": self._plan(arm) if arm.is_dynamic else [],
            "bytes": _size(model),
            "params": costs.params,
            "macs": {part: getattr(costs, part) for part in ("convolution", "routing", "assembly", "other")},
        }

    def _latency(self, name: str, model: nn.Module, batch: int) -> dict[str, float]:
        x = self._images(batch)[0]
        return _timing(name, measure.latency(model, self.static, x, self.config.measure_seconds))

    def _step(self, name: str, model: nn.Module) -> dict[str, float]:
        x, y = self._training_batch()
        timing = measure.training_step(model, self.static, x, y, self.config, self.config.measure_seconds)
        return {"batch": len(x), **_timing(name, timing)}

    def _training_batch(self) -> tuple[Tensor, Tensor]:
        return self._images(min(self.config.batch_size, len(self.dataset.train.labels)))

    def _images(self, count: int) -> tuple[Tensor, Tensor]:
        """Some test images, normalised (B, C, H, W), and their labels (B,); repeated where there are fewer."""
        labels = self.dataset.test.labels
        index = balanced(labels, min(count, len(labels)))
        index = index.repeat(-(-count // len(index)))[:count]
        x = self.dataset.normalise(self.dataset.test.batch(index).to(self.device))
        return x, labels[index].to(self.device)


def _size(model: nn.Module) -> int:
    """Bytes of the file that ``torch.save`` makes of the weights."""
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.tell()


def _timing(name: str, timing: measure.Timing) -> dict[str, float]:
    """The static network against itself has the ratio 1 by definition; its percentiles show the noise."""
    ratio = {"ratio": 1.0} if name == STATIC else {}
    return {**dataclasses.asdict(timing), **ratio}


def _tops(curves: list[Curve]) -> list[float]:
    return [curve[-1]["test_top1"] for curve in curves]


def accuracy(arm: Arm, curves: list[Curve]) -> dict[str, Any]:
    """Test accuracy over the seeds, and of each seed with its learning curve."""
    tops = _tops(curves)
    seeds = [
        {"seed": seed, "top1": top, "checkpoint": checkpoint_path(Path(), arm, seed).as_posix(), "curve": curve}
        for seed, (top, curve) in enumerate(zip(tops, curves, strict=True))
    ]
    spread = statistics.stdev(tops) if len(tops) > 1 else None
    return {"top1": {"mean": statistics.fmean(tops), "std": spread}, "seeds": seeds}


def describe(dataset: DataSet, left_out: list[str]) -> dict[str, Any]:
    """The entry ``data``; ``left_out`` says what is wrong with each image that was."""
    skipped = {"left_out": {"images": len(left_out), "first": left_out[0]}} if left_out else {}
    return {
        "name": dataset.name,
        "title": dataset.title,
        "classes": list(dataset.classes),
        "train": len(dataset.train.labels),
        "test": len(dataset.test.labels),
        "shape": list(dataset.shape),
        "license": dataset.license,
        "source": dataset.source,
        **skipped,
    }
