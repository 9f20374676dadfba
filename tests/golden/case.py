# SPDX-License-Identifier: Apache-2.0
"""Golden vectors of the official implementations: values, attentions, gradients and running statistics."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

import convary as cv
from convary.nn import layout
from convary.papers import COUNTS as COUNTS
from tests.golden import fill

GOLDEN = Path(__file__).parent


def cases(pattern: str) -> list[str]:
    found = sorted(p.stem for p in GOLDEN.glob(f"{pattern}.npz"))
    assert found, pattern
    return found


class Case:
    """One vector: expected arrays, inputs and state as float64 tensors."""

    def __init__(self, name: str) -> None:
        self.meta, expected, inputs, state = fill.load(GOLDEN / f"{name}.npz")
        self.expected = {k: torch.from_numpy(np.asarray(v)).double() for k, v in expected.items()}
        self.inputs = {k: torch.from_numpy(np.asarray(v)) for k, v in inputs.items()}
        self.state = {k: torch.from_numpy(np.asarray(v)) for k, v in state.items()}
        self.kwargs, self.settings = self.meta["kwargs"], self.meta.get("settings", {})
        self.training = self.meta["mode"] == "train"

    def close(self, name: str, got: torch.Tensor) -> None:
        want = self.expected[name]
        noise = self.settings.get("checks", {}).get("float64_noise", 0.0)
        limit = (1e-6 + 1000 * noise) * want.abs().max() + 1e-9
        assert got.reshape(want.shape).sub(want).abs().max() <= limit, name

    def released(self, model: nn.Module) -> None:
        """What was loaded is saved back, name by name."""
        back = cv.released_state(model)
        assert back.keys() == self.state.keys()
        assert all(torch.equal(back[key], value.to(back[key].dtype)) for key, value in self.state.items())

    def released_gradients(self, layer: nn.Module) -> dict[str, torch.Tensor]:
        """The gradients of a layer's parameters by their authors' names."""
        grads = {name: p.grad for name, p in layer.named_parameters()}
        return layout.write((row for row in layer.released(None) if row.ours in grads), grads)

    def backward(self, out: torch.Tensor) -> None:
        """Gradients of ``sum(out * probe)``, the probe that the vectors were made with."""
        probe = torch.from_numpy(fill.fill("probe", tuple(out.shape), waveform=self.meta["waveform"]))
        (out * probe).sum().backward()

    def check_gradients(self, grads: dict[str, torch.Tensor]) -> None:
        """Compare every gradient that the vector has; ``grads`` is by the vector's names."""
        for key in (k for k in self.expected if k.startswith("grad.")):
            self.close(key, grads[key.removeprefix("grad.")])
