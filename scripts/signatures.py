# SPDX-License-Identifier: Apache-2.0
"""Write what layers take, for editors and type checkers, which run nothing: torch's arguments, and the options.

    python scripts/signatures.py

The options are the fields of the method's config, which alone says them at run time. In the method's file, the layers'
base has a block from ``if TYPE_CHECKING:  # by scripts/signatures.py`` to the docstring, which is replaced. For a new
method copy another's, whatever it says.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from convary import METHODS, KernelWarehouseLinear
from convary.nn import DynamicLayer

_TIE = "\N{NO-BREAK SPACE}"  # no line ends there
_MARK = "    if TYPE_CHECKING:  # by scripts/signatures.py\n"
_END = '            """Torch\'s arguments, then the method\'s options, which its config explains."""\n'
_BLOCK = re.compile(f"{re.escape(_MARK)}.*?{re.escape(_END)}", re.DOTALL)


def files() -> dict[Path, list[type[DynamicLayer]]]:
    """The methods' files, each with the layers whose signatures it spells out, in order."""
    found: dict[Path, list[type[DynamicLayer]]] = {}
    for layer in (*(config.layers[2] for config in METHODS), KernelWarehouseLinear):
        found.setdefault(Path(inspect.getfile(layer)), []).append(layer)
    return found


def block(layer: type[DynamicLayer]) -> str:
    """The lines of a layer's base, or of the layer itself."""
    arguments = ", ".join(argument.replace(" ", _TIE) for argument in ("self", *_arguments(layer)))
    lines = textwrap.fill(arguments, 120, initial_indent=" " * 12, subsequent_indent=" " * 12).replace(_TIE, " ")
    return f"{_MARK}\n        def __init__(\n{lines}\n        ) -> None:  # fmt: skip\n{_END}"


def _arguments(layer: type[DynamicLayer]) -> Iterator[str]:
    keyword_only = False
    for parameter in inspect.signature(layer).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            yield "*"
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        yield f"{parameter.name}: {parameter.annotation}{default}".replace("'", '"')


def written(file: Path) -> str:
    """What a file should be.

    Raises:
        SystemExit: it has another number of blocks than of layers.
    """
    text, blocks = file.read_text(encoding="utf-8"), [block(layer) for layer in files()[file]]
    if len(found := _BLOCK.findall(text)) != len(blocks):
        raise SystemExit(f"{file} has {len(found)} blocks for signatures, not {len(blocks)}; copy another method's")
    waiting = iter(blocks)
    return _BLOCK.sub(lambda _: next(waiting), text)


if __name__ == "__main__":
    for file in files():
        file.write_text(written(file), encoding="utf-8")
