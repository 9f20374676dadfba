# SPDX-License-Identifier: Apache-2.0
"""What trained networks do with single test images: what they say, which expert fires, and by which path."""

from __future__ import annotations

import base64
import io
import warnings
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate

from convary._diagnose import shares
from convary._routing import routing
from convary._schedule import tempered_routers
from convary.data import DataSet, Split, balanced
from convary.errors import TemperatureWarning
from convary.methods import MethodConfig
from convary.nn import DynamicLayer, evaluating
from convary.train.evaluation import batches

POOL = 500  # test images among which each expert's are found
BEST = 8  # images of an expert
EXPERTS = 16  # of a layer that are looked at
PATHS = 4  # images whose path is followed
TEMPERATURES = 7  # at which it is
DIFFER = 8  # images of each kind on which two networks differ
SIDE = 48  # pixels of the largest picture that is kept


class Portraits:
    """Looks at networks one by one, and keeps the pictures of the images that it names.

    Args:
        dataset: Gives the test images.
        batch_size: Images at a time.
        device: Where the networks are.
    """

    def __init__(self, dataset: DataSet, batch_size: int, device: torch.device | str) -> None:
        self.dataset, self.batch_size, self.device = dataset, batch_size, device
        labels = dataset.test.labels
        self.pool = balanced(labels, min(POOL, len(labels)))
        classes = torch.linspace(0, len(dataset.classes) - 1, min(PATHS, len(dataset.classes))).round().long()
        self.followed = torch.cat([(labels == kind).nonzero().flatten()[:1] for kind in classes])
        self.said: dict[str, Tensor] = {}
        self.named: set[int] = set()

    def entry(self, name: str, model: nn.Module, method: MethodConfig | None) -> dict[str, Any]:
        """What results.json says of a network: ``confusion``, and of a dynamic one ``experts`` and ``paths``.

        Args:
            name: Of the arm.
            model: Trained, on the device.
            method: Of a dynamic network; None for any other.
        """
        said = self.said[name] = _said(model, self._batches(self.dataset.test))
        labels, count = self.dataset.test.labels, len(self.dataset.classes)
        confusion = (labels * count + said).bincount(minlength=count * count).reshape(count, count)
        entry: dict[str, Any] = {"confusion": confusion.tolist()}
        if method is not None:
            entry |= {"experts": self._experts(model), "paths": self._paths(model, method)}
        return entry

    def differences(self, name: str, other: str) -> dict[str, Any]:
        """Where two networks that were looked at do not say the same.

        Returns:
            By kind (``other_right``: ``name`` is wrong there, ``name_right``, ``both_wrong``) the number of images and
            the first of them: index, what ``name`` says, what ``other`` says.
        """
        labels, mine, theirs = self.dataset.test.labels, self.said[name], self.said[other]
        differ = mine != theirs
        kinds = {"name_right": mine == labels, "other_right": theirs == labels}
        kinds["both_wrong"] = ~(kinds["name_right"] | kinds["other_right"])
        found: dict[str, Any] = {"with": other}
        for kind, where in kinds.items():
            at = (differ & where).nonzero().flatten()
            first = [[i, int(mine[i]), int(theirs[i])] for i in at[balanced(labels[at], min(DIFFER, len(at)))].tolist()]
            found[kind] = {"count": len(at), "images": first}
            self.named.update(image[0] for image in first)
        return found

    def pictures(self) -> dict[str, Any]:
        """The images that were named, by index, as PNG in base64 with their class."""
        index = torch.tensor(sorted(self.named), dtype=torch.long)
        labels = self.dataset.test.labels[index].tolist()
        found = zip(index.tolist(), labels, self.dataset.test.batch(index) if len(index) else [], strict=True)
        return {str(at): {"label": label, "png": _png(image)} for at, label, image in found}

    def _batches(self, part: Split) -> Any:
        return batches(part, self.dataset, self.batch_size, self.device)

    def _experts(self, model: nn.Module) -> list[dict[str, Any]]:
        """Per layer and expert: the images of the pool in whose mixture it has the largest share."""
        found: dict[str, list[Tensor]] = {}
        for x, _ in self._batches(self.dataset.test.take(self.pool)):
            for layer, share in layer_shares(model, x).items():
                found.setdefault(layer, []).append(share)
        entries = []
        for layer, parts in found.items():
            values, order = torch.cat(parts).sort(dim=0, descending=True, stable=True)
            images = self.pool[order[:BEST, :EXPERTS]].T.tolist()
            entries.append({"layer": layer, "images": images, "shares": values[:BEST, :EXPERTS].T.tolist()})
            self.named.update(index for row in images for index in row)
        return entries

    def _paths(self, model: nn.Module, method: MethodConfig) -> dict[str, Any] | None:
        """Shares of the experts for a few images, at temperatures from the annealing's first to its last."""
        x = self.dataset.normalise(self.dataset.test.batch(self.followed).to(self.device))
        final = layer_shares(model, x)
        if not final:
            return None
        followed = self.followed.tolist()
        self.named.update(followed)
        at = [{"temperature": None, "layers": _listed(final)}]
        annealing = method.annealing
        if annealing is not None and annealing.stop > 0:
            steps = torch.linspace(0, 1, TEMPERATURES, dtype=torch.double)
            falling = [float(annealing.start * (annealing.stop / annealing.start) ** step) for step in steps]
            at = [{"temperature": t, "layers": _listed(_shares_at(model, x, t))} for t in falling]
        return {"images": followed, "at": at}


def layer_shares(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Share of each expert in the mixture of each image, (B, K) by layer, where experts have coefficients of their own.

    Args:
        model: With dynamic layers, or without.
        x: Normalised images (B, C, H, W).
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, DynamicLayer)}
    if not layers:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TemperatureWarning)  # other temperatures are what is looked at
        found = {name: shares(coeffs, layers[name].num_experts) for name, coeffs in routing(model, x).items()}
    return {name: share for name, share in found.items() if share is not None}


def _shares_at(model: nn.Module, x: Tensor, temperature: float) -> dict[str, Tensor]:
    """The shares at a temperature; the routers keep their own."""
    routers = tempered_routers(model)
    own = [float(router.temperature) for router in routers if router.temperature is not None]
    for router in routers:
        router.set_temperature_(temperature)
    found = layer_shares(model, x)
    for router, before in zip(routers, own, strict=True):
        router.set_temperature_(before)
    return found


def _listed(found: dict[str, Tensor]) -> list[dict[str, Any]]:
    return [{"layer": layer, "shares": share[:, :EXPERTS].tolist()} for layer, share in found.items()]


@torch.no_grad()
def _said(model: nn.Module, images: Any) -> Tensor:
    with evaluating(model):
        return torch.cat([model(x).argmax(1).cpu() for x, _ in images])


def _png(image: Tensor) -> str:
    """A uint8 image (C, H, W) in base64, at most SIDE pixels high and wide."""
    image = image if image.shape[0] in (1, 3) else image.float().mean(0, keepdim=True).to(torch.uint8)
    if (side := max(image.shape[1:])) > SIDE:
        small = [max(1, round(length * SIDE / side)) for length in image.shape[1:]]
        image = interpolate(image[None].float(), small, mode="area")[0].round().to(torch.uint8)
    pixels = image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
