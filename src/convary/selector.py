# SPDX-License-Identifier: Apache-2.0
"""Selectors of ``convary.where`` out of a text, as ``--where`` has it: written as in Python, without running Python."""

from __future__ import annotations

import ast
import inspect
from typing import Any

from torch import nn

from convary import where
from convary.errors import ConfigError, nearest
from convary.methods import MethodConfig
from convary.where import Selector

SELECTORS = {
    name: function
    for name, function in vars(where).items()
    if inspect.isfunction(function) and function.__module__ == where.__name__ and not name.startswith("_")
}


def selector(text: str, config: MethodConfig) -> Selector:
    """The selector that ``text`` spells; parentheses after a name may be left out.

    Args:
        text: for example ``"all & ~first"`` or ``"name('layer4.*') | kernel_size(1)"``.
        config: the method that ``paper`` stands for.

    Raises:
        ConfigError: not an expression of selectors.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ConfigError(f"--where {text!r} cannot be read; write it as in --where 'all & ~first'") from error
    return _read(tree, text, config)


def _read(node: ast.expr, text: str, config: MethodConfig) -> Selector:
    match node:
        case ast.BinOp(left=left, op=ast.BitAnd(), right=right):
            return _read(left, text, config) & _read(right, text, config)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _read(left, text, config) | _read(right, text, config)
        case ast.UnaryOp(op=ast.Invert(), operand=operand):
            return ~_read(operand, text, config)
        case ast.Name(id=name):
            return _call(name, [], text, config)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            return _call(name, args, text, config)
    raise ConfigError(f"--where {text!r}: {ast.unparse(node)!r} is no selector; combine {_known()} with & | ~")


def _call(name: str, args: list[ast.expr], text: str, config: MethodConfig) -> Selector:
    if name not in SELECTORS:
        raise ConfigError(f"--where {text!r}: no selector {name!r}{nearest(name, SELECTORS)}; known: {_known()}")
    if name == "paper":
        return where.paper(config)
    values = [_value(arg, text) for arg in args]
    try:
        return SELECTORS[name](*values)
    except TypeError as error:
        raise ConfigError(f"--where {text!r}: {name} takes {inspect.signature(SELECTORS[name])}") from error


def _value(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Name) and isinstance(getattr(nn, node.id, None), type):
        return getattr(nn, node.id)
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise ConfigError(f"--where {text!r}: {ast.unparse(node)!r} is no number, text or torch.nn class") from error


def _known() -> str:
    return ", ".join(SELECTORS)
