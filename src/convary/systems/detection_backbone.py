# SPDX-License-Identifier: Apache-2.0
"""The classifier whose convolutions a detector takes: from a checkpoint of compare, a weight file, or anew."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torchvision.models import get_model

from convary._convert import convert
from convary.errors import CheckpointError, ConfigError
from convary.files import read_tensors
from convary.methods import MethodConfig
from convary.models import Comparator
from convary.models.architecture import COMPARED, Architecture, trained
from convary.nn import DynamicLayer
from convary.train.arms import read_arm
from convary.weights import load_exactly, read_weights

_HEADS = ("fc.", "classifier.")
_COUNTED = ".num_batches_tracked"  # which files of old versions have not


def dynamic_method(name: str) -> MethodConfig | None:
    """The method that ``static`` or ``METHOD:OPTION=VALUE`` names; None of a static network.

    Raises:
        ConfigError: it names neither.
    """
    arm = read_arm(name)
    if isinstance(arm.method, Comparator) or (arm.method is None and not arm.is_static):
        raise ConfigError(f"the method of a backbone is static or dynamic, as in odconv:experts=1; got {name!r}")
    return arm.method


def classifier(backbone: str, method: str, weights: Path | None) -> nn.Module:
    """A network of torchvision with the layers of a method where its paper has them.

    Args:
        backbone: Its name.
        method: ``static`` or a method with its options.
        weights: A checkpoint of ``convary compare`` of this network with this method, or static; or a weight file of
            torchvision or timm for the static network. Static weights become those of every expert: the network
            computes what the static one does.

    Raises:
        CheckpointError: the file is missing, broken, or of another network.
        ConfigError: a checkpoint of another network or method.
    """
    config = dynamic_method(method)
    net = None if weights is None else _compared(weights, backbone, config)
    if net is None:
        net = get_model(backbone, weights=None)
        if weights is not None:
            load_convolutions(net, read_weights(weights), str(weights))
    if config is None or any(isinstance(module, DynamicLayer) for module in net.modules()):
        return net
    return convert(net, config, upcycle=weights is not None)


def load_convolutions(net: nn.Module, tensors: dict[str, Tensor], what: str) -> None:
    """Load everything but the classifier, by name, or where all shapes agree in their order, as timm's names want.

    Raises:
        CheckpointError: it is of another network.
    """
    own, given = _body(net.state_dict()), _body(tensors)
    if own.keys() != given.keys() and [t.shape for t in own.values()] == [t.shape for t in given.values()]:
        given = dict(zip(own, given.values(), strict=True))
    rest = {name: value for name, value in net.state_dict().items() if name not in own}
    load_exactly(net, rest | given, what)


def _body(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: value for n, value in tensors.items() if not n.startswith(_HEADS) and not n.endswith(_COUNTED)}


def _compared(path: Path, backbone: str, config: MethodConfig | None) -> nn.Module | None:
    """The network of a checkpoint of compare; None where the file is another one."""
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}; give a checkpoint of convary compare, or a weight file")
    if path.suffix == ".safetensors":
        return None
    content = read_tensors(path, "save a state dict: torch.save(model.state_dict(), path)")
    if not isinstance(content, dict) or content.get("format") != COMPARED:
        return None
    found = Architecture(**content["architecture"])
    if found.model != f"torchvision:{backbone}":
        raise ConfigError(f"{path} is of {found.model}, and the backbone is torchvision:{backbone}; make them the same")
    if found.method is not None and (config is None or found.method != config.to_json()):
        wanted = "static" if config is None else config.to_json()
        raise ConfigError(f"{path} is of the method {found.method}, and wanted is {wanted}; make them the same")
    return trained(content, path).train()
