# SPDX-License-Identifier: Apache-2.0
"""The Hub's ``PyTorchModelHubMixin``, and with it segmentation_models_pytorch: a recipe beside the weights.

``save_pretrained`` and ``push_to_hub`` of a converted model write ``convary.json``, and ``from_pretrained`` (also
``smp.from_pretrained``) restores the dynamic layers by it. A process that converts a model has that by itself; one that
only loads a model imports this module first.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from convary._recipe import recipe
from convary.errors import CheckpointError
from convary.extras import require_version
from convary.integrations.restored import is_converted, restoring

require_version("convary.integrations.huggingface_hub", "huggingface_hub", "0.25", "3")
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download  # noqa: E402
from huggingface_hub.errors import EntryNotFoundError  # noqa: E402

FILE = "convary.json"
_HUB = ("revision", "cache_dir", "force_download", "local_files_only", "token")


def attend() -> None:
    """Make ``PyTorchModelHubMixin`` save and load recipes; once, however often it is called."""
    if hasattr(PyTorchModelHubMixin, "_convary"):
        return
    mixin: Any = PyTorchModelHubMixin
    mixin._convary = True
    mixin._save_pretrained = _saving(mixin._save_pretrained)
    mixin._from_pretrained = classmethod(_loading(mixin._from_pretrained.__func__))


def _saving(original: Any) -> Any:
    @functools.wraps(original)
    def _save_pretrained(self: Any, save_directory: Path) -> None:
        original(self, save_directory)
        path = Path(save_directory) / FILE
        if is_converted(self):
            path.write_text(json.dumps(recipe(self), indent=2))
        else:
            path.unlink(missing_ok=True)  # of another model that was saved there before

    return _save_pretrained


def _loading(original: Any) -> Any:
    @functools.wraps(original)
    def _from_pretrained(cls: Any, *, model_id: str, **options: Any) -> Any:
        found = _recipe(model_id, {key: options[key] for key in _HUB if key in options})
        if found is None:
            return original(cls, model_id=model_id, **options)
        model = original(restoring(cls, found), model_id=model_id, **options)
        model.__class__ = cls
        return model

    return _from_pretrained


def _recipe(model_id: str, options: dict[str, Any]) -> Any:
    """The recipe in a folder or a repository of the Hub, or None."""
    if Path(model_id).is_dir():
        path = Path(model_id) / FILE
        if not path.exists():
            return None
    else:
        try:
            path = Path(hf_hub_download(model_id, FILE, **options))
        except EntryNotFoundError:
            return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is no recipe of convary: {error}; save the model again") from error


attend()
