# SPDX-License-Identifier: Apache-2.0
"""Whole networks as they are shipped: compiled, or as files in other runtimes; dynamic against static.

A line is timed against the static network in the same mode, and against whichever mode the static one is fastest in.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convary.bench.engines import ENGINES, Engine, Running, obstacle, prepared
from convary.bench.machine import load
from convary.bench.models import AS_STATIC, networks, step
from convary.bench.timing import device_here, fitting_clock, interleave

STATIC_SHARE = 0.25  # of a line's seconds, for each mode that the static network may be fastest in


@dataclass(frozen=True, kw_only=True)
class ModesConfig:
    """What to measure.

    Attributes:
        mode: One of ``ENGINES``.
        models: Names that ``convary.models.build`` knows.
        methods: Names of methods, with their published defaults.
        batches: Batch sizes.
        modes: "inference", and "training" where the mode can: a step, forward and backward.
        device: What torch calls it; of engines that have it.
        threads: Numbers of threads, one after the other.
        image_size: Height and width of the images.
        forms: Of a file, by the names of the engine's ``forms``; all that the batch allows where empty.
        free_batch: Whether files take any batch.
        seconds: Per line.
    """

    mode: str = "onnxruntime"
    models: tuple[str, ...] = ("torchvision:mobilenet_v2", "torchvision:resnet18")
    methods: tuple[str, ...] = ("condconv", "dyconv", "odconv")
    batches: tuple[int, ...] = (1, 16)
    modes: tuple[str, ...] = ("inference", "training")
    device: str = "cpu"
    threads: tuple[int, ...] = (1, 2)
    image_size: int = 224
    forms: tuple[str, ...] = ()
    free_batch: bool = False
    seconds: float = 6.0


def measure(config: ModesConfig) -> Iterator[dict[str, Any]]:
    """One line per network, method, batch, number of threads, pass and form.

    Yields:
        The line as plain JSON values: what was measured, the error against eager torch and the fields of ``Timing``;
        ``fastest`` is the same against the static network in the mode named there. A line whose error is above the
        form's tolerance, and in training above ``AS_STATIC`` times the static network's own, has no times.
    """
    before = torch.get_num_threads()
    engine = ENGINES[config.mode]
    try:
        with prepared(engine):
            for name, threads, batch in itertools.product(config.models, config.threads, config.batches):
                torch.set_num_threads(threads)
                for mode in (mode for mode in config.modes if mode in engine.modes):
                    with tempfile.TemporaryDirectory() as folder:
                        yield from _Lines(config, engine, name, batch, mode, Path(folder)).all()
    finally:
        torch.set_num_threads(before)


class _Lines:
    """The lines of one network at one batch, by the threads of now.

    Args:
        config: What to measure.
        engine: What runs it.
        name: Of the network.
        batch: How many images.
        mode: "inference" or "training".
        folder: For files.
    """

    def __init__(self, config: ModesConfig, engine: Engine, name: str, batch: int, mode: str, folder: Path) -> None:
        self.config, self.engine, self.name, self.mode, self.folder = config, engine, name, mode, folder
        size = config.image_size
        x = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
        self.x = x.to(device_here(config.device))
        self.clock = fitting_clock(self.x.device)
        self.allowed = 0.0  # of an error, besides the form's tolerance

    def all(self) -> Iterator[dict[str, Any]]:
        """Each method in each form of a file that is for such a batch."""
        forms = self.config.forms or tuple(self.engine.forms)
        single = len(self.x) == 1 or self.config.free_batch
        forms = [form for form in forms if single or not self.engine.forms[form].one_image]
        forms = [form for form in forms if self.mode in self.engine.forms[form].tolerance]
        torch._dynamo.reset()
        static = self._ready(networks(self.name, "static", self.config.image_size)[0])
        base = self._made(self.engine, static, next(iter(self.engine.forms)))
        fastest = self._fastest(static, base)
        if self.mode == "training":  # a ReLU that falls the other way turns a gradient off, in any network
            self.allowed = AS_STATIC * self._error(base, static)
        for method in self.config.methods:
            dynamic = self._ready(networks(self.name, method, self.config.image_size)[1])
            for form in forms:
                yield self._line(dynamic, method, form, base, fastest)

    def _line(
        self, dynamic: nn.Module, method: str, form: str, base: Running, fastest: tuple[str, Callable]
    ) -> dict[str, Any]:
        ours = self._made(self.engine, dynamic, form)
        row = {
            "model": self.name, "method": method, "by": self.config.mode, "form": form,
            "batch": len(self.x), "free": self.config.free_batch, "mode": self.mode,
            "threads": torch.get_num_threads(), "error": self._error(ours, dynamic),
        }  # fmt: skip
        if not row["error"] < max(self.engine.forms[form].tolerance[self.mode], self.allowed):
            return row
        row |= vars(interleave(ours.call, base.call, self.config.seconds, self.clock))
        row |= {"load": load(), "made_seconds": ours.seconds, "base_made_seconds": base.seconds}
        row |= {"nodes": ours.nodes, "base_nodes": base.nodes}
        best, call = fastest
        found = row if best == self.config.mode else vars(interleave(ours.call, call, self.config.seconds, self.clock))
        row["fastest"] = {"by": best, **{key: found[key] for key in ("ratio", "low", "high", "base_ms")}}
        return row

    def _ready(self, model: nn.Module) -> nn.Module:
        """In the mode of its pass, where it runs; without dropout, which a compiled graph draws otherwise."""
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        return model.to(self.x.device).train(self.mode == "training")

    def _error(self, running: Running, model: nn.Module) -> float:
        """How far it is from eager torch, relative to the largest score or gradient."""
        want = _answer(step(model, self.x, self.mode), model, self.mode)
        return float((_answer(running.call, model, self.mode) - want).abs().max() / want.abs().max())

    def _made(self, engine: Engine, model: nn.Module, form: str) -> Running:
        free = (0,) if self.config.free_batch and engine.files else ()
        start = engine.clock()
        call, nodes = engine.make(model, self.x, self.mode, engine.forms[form].how, free, self.folder)
        call()
        return Running(call, engine.clock() - start, nodes)

    def _fastest(self, static: nn.Module, base: Running) -> tuple[str, Callable[[], object]]:
        """The mode that the static network is fastest in here, of those that are installed, and its step."""
        calls: dict[str, Callable[[], object]] = {"eager": step(static, self.x, self.mode), self.config.mode: base.call}
        for name, engine in ENGINES.items():
            here = self.x.device.type == "cpu" or engine.accelerated
            if name not in calls and self.mode in engine.modes and here and obstacle(name) is None:
                calls[name] = self._made(engine, static, next(iter(engine.forms))).call
        seconds = STATIC_SHARE * self.config.seconds
        times = {name: interleave(call, calls["eager"], seconds, self.clock).ratio for name, call in calls.items()}
        best = min(times, key=times.__getitem__)
        return best, calls[best]


def _answer(call: Callable[[], Any], model: nn.Module, mode: str) -> Tensor:
    """What a step computes: its output, or in training all gradients in a row."""
    found = call()
    if mode == "training":
        return torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None])
    return torch.as_tensor(found).clone()
