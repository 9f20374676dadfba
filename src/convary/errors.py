# SPDX-License-Identifier: Apache-2.0
"""What convary raises. Every message says what happened, what was given, what is wanted and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConvaryError(Exception):
    """Base of every error raised on purpose; the command line turns it into one line and exit code 2."""


class ShapeError(ConvaryError, ValueError):
    """A tensor's shape does not fit the others."""


class DtypeError(ConvaryError, TypeError):
    """A tensor's dtype does not fit the others."""


class DeviceError(ConvaryError, ValueError):
    """Tensors that must share a device do not."""


class ConfigError(ConvaryError, ValueError):
    """An option has a value that cannot work."""


class StrategyError(ConvaryError, RuntimeError):
    """A strategy was forced that cannot run on these tensors."""


class DataError(ConvaryError, ValueError):
    """A data set is missing, empty or broken."""


class CheckpointError(ConvaryError, ValueError):
    """A checkpoint is truncated, foreign, or of another architecture."""


class ExportError(ConvaryError, RuntimeError):
    """The target of an export can't hold the model."""


class FusionError(ConvaryError, RuntimeError):
    """Somebody else's batch-norm fusion met a dynamic layer."""


class TemperatureWarning(UserWarning):
    """A model is evaluated while its routers' temperature is still above its final value."""


class ConversionWarning(UserWarning):
    """Another program drops the conversion of a network, or may not know how to treat it."""


class GrowthWarning(UserWarning):
    """A conversion makes a network larger by far than its method promises."""


class NativeWarning(UserWarning):
    """The native kernels are absent, or run on one thread; told once, at their first use."""


def nearest(name: str, options: Iterable[str]) -> str:
    """A suggestion to append to an error message, empty where nothing is close.

    >>> nearest("odcnov", ["odconv", "dyconv"])
    "; did you mean 'odconv'?"
    >>> nearest("zebra", ["odconv"])
    ''
    """
    close = difflib.get_close_matches(name, list(options), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
