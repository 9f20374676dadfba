# SPDX-License-Identifier: Apache-2.0
"""One clear error where an optional dependency is missing, or of another version than convary knows."""

from __future__ import annotations

import importlib.util
import re

from convary.errors import ConvaryError


class MissingExtraError(ConvaryError, ImportError):
    """A part of convary is used whose optional dependencies are not installed."""


def require(part: str, extra: str, *modules: str) -> None:
    """Raise unless every module can be imported.

    Args:
        part: What needs them, for the message: ``"convary.data"``.
        extra: The extra of convary that brings them.
        modules: Names of top-level modules.

    Raises:
        MissingExtraError: a module is not installed; the message names the extra.

    >>> require("convary.data", "vision", "torch")
    >>> require("convary.data", "vision", "no_such_module")
    Traceback (most recent call last):
    convary.extras.MissingExtraError: convary.data needs no_such_module, which is not installed; run pip install ...
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise MissingExtraError(f"{part} needs {', '.join(missing)}, which {verb} not installed; run {command(extra)}")


def command(extra: str) -> str:
    """What installs what is missing of an extra and of the core: packages by their names.

    convary's own name would not do: it is on no package index, and where it is installed from a file its extras are
    known but can't be asked for.

    >>> command("vision")
    'pip install ...timm...'
    """
    import importlib.metadata  # takes a tenth of a second

    try:
        requirements = importlib.metadata.requires("convary") or []
    except importlib.metadata.PackageNotFoundError:
        return f'pip install ".[{extra}]" in a checkout of convary'
    here = {_plain(found.metadata["Name"]) for found in importlib.metadata.distributions()}
    core, wanted = _packages(requirements, None), _packages(requirements, extra)
    missing = [name for name in wanted if _plain(name) not in here]
    return f"pip install {' '.join(missing or [name for name in wanted if name not in core])}"


def _packages(requirements: list[str], extra: str | None) -> list[str]:
    """Names in ``requirements`` (as in a wheel's metadata) without an extra and of ``extra``, each once, in order.

    >>> _packages(["torch>=2.6", 'a; extra == "one"', 'convary[one]; extra == "all"'], "all")
    ['torch', 'a']
    """
    names: list[str] = []
    for line in requirements:
        requirement, _, marker = line.partition(";")
        of = re.search(r"extra == .(\w+)", marker)
        if of is not None and of[1] != extra:
            continue
        name, *inner = re.findall(r"[\w.-]+", requirement.partition(">")[0].partition("<")[0])
        names += [n for part in inner for n in _packages(requirements, part)] if name == "convary" else [name]
    return list(dict.fromkeys(names))


def _plain(name: str) -> str:
    """The name of a package as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def require_version(part: str, package: str, lowest: str, below: str) -> None:
    """Raise unless a package is installed in a version of ``lowest <= version < below``.

    Args:
        part: What needs it, for the message.
        package: Name of the distribution.
        lowest: First supported version: numbers with dots.
        below: First version that is not supported.

    Raises:
        MissingExtraError: it is not installed, or in another version; the message names the range.

    >>> require_version("an example", "torch", "2.6", "3")
    >>> require_version("an example", "torch", "1.0", "2.0")
    Traceback (most recent call last):
    convary.extras.MissingExtraError: an example supports torch>=1.0,<2.0; found torch ...
    """
    import importlib.metadata  # takes a tenth of a second

    wanted = f"{package}>={lowest},<{below}"
    try:
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise MissingExtraError(f'{part} needs {package}, which is not installed; run pip install "{wanted}"') from None
    if not _numbers(lowest) <= _numbers(found) < _numbers(below):
        raise MissingExtraError(f'{part} supports {wanted}; found {package} {found}; run pip install "{wanted}"')


def _numbers(version: str) -> tuple[int, ...]:
    """The release of a version, without what comes after the numbers: 2.6.0rc1 is (2, 6, 0)."""
    release = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, release[0].split("."))) if release else ()
