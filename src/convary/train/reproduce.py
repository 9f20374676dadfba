# SPDX-License-Identifier: Apache-2.0
"""Train rows of published tables: the rows of one network and one recipe are one comparison."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from convary.data.cards import PHOTOGRAPHS
from convary.errors import ConfigError
from convary.methods import MethodConfig
from convary.models import Comparator
from convary.papers import TABLES, Row, Table
from convary.papers.page import page
from convary.train.arms import STATIC
from convary.train.comparison import compare
from convary.train.config import CompareConfig
from convary.train.progress import Progress
from convary.train.recipe_page import as_markdown
from convary.train.recipes import training_recipe

IMAGENET_SIZE = 224
Key = tuple[str, str]  # the names of a table and of a row


class Group(NamedTuple):
    """Rows that one comparison trains.

    Attributes:
        config: Of the comparison.
        arms: The arm of each row.
    """

    config: CompareConfig
    arms: dict[Key, str]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is trained, and which rows are not, and why."""

    groups: list[Group]
    left_out: dict[Key, str]


def plan(tables: Iterable[Table], out: Path, recipe: str | None = None, **given: Any) -> Plan:
    """What training the rows of some tables means; nothing is trained yet.

    Args:
        tables: With the rows.
        out: Folder; every comparison gets one in it.
        recipe: For rows that have none.
        given: Fields of ``CompareConfig`` that override the recipes'.

    Raises:
        ConfigError: no row can be trained, or a value that cannot work.
    """
    left_out: dict[Key, str] = {}
    rows: dict[tuple[str, str, str, bool], dict[Key, Row]] = {}
    for table in tables:
        for row in table.rows:
            by = row.recipe or recipe
            reason = obstacle(row, by)
            if reason or row.network is None or by is None:
                left_out[table.name, row.name] = reason
            else:
                rows.setdefault((row.network, by, row.where, row.classifier_bias), {})[table.name, row.name] = row
    if not rows:
        told = "; ".join(dict.fromkeys(f"{name}: {reason}" for (_, name), reason in left_out.items()))
        raise ConfigError(f"none of these rows can be trained: {told}")
    groups = [_group(*key, found, out, given) for key, found in rows.items()]
    return Plan(groups=groups, left_out=left_out)


def obstacle(row: Row, recipe: str | None = None) -> str:
    """Why a row can't be trained by its recipe, or by another one where it has none; or nothing."""
    if row.obstacle:
        return row.obstacle
    if row.detector:
        return "a detector: --data coco:FOLDER trains it"
    return "" if row.recipe or recipe else f"{row.untrained}; --recipe NAME trains it by another paper's"


def _group(
    network: str, recipe: str, where: str, bias: bool, rows: dict[Key, Row], out: Path, given: dict[str, Any]
) -> Group:
    arms = {key: STATIC if row.method is None else arm_name(row.method) for key, row in rows.items()}
    plain = "".join(letter if letter.isalnum() or letter in ".-" else "-" for letter in f"{network}-{recipe}-{where}")
    plain += "" if bias else "-no-bias"
    if given.get("data", "").startswith(PHOTOGRAPHS):
        given = {"image_size": training_recipe(recipe).image_size or IMAGENET_SIZE, **given}
    config = CompareConfig.from_recipe(
        recipe,
        model=network,
        methods=tuple(dict.fromkeys(sorted(arms.values(), key=lambda name: name != STATIC))),
        where=where,
        classifier_bias=bias,
        out=out / plain.replace("--", "-").strip("-"),
        **given,
    )
    return Group(config, arms)


def arm_name(method: MethodConfig | Comparator) -> str:
    """How ``convary compare --methods`` writes a method with its options.

    >>> from convary.methods import ODConv
    >>> arm_name(ODConv(experts=1, attentions=("tap", "filter")))
    'odconv:experts=1,attentions=tap+filter'
    """
    usual = type(method)()
    options = [
        f"{field.name}={'+'.join(value) if isinstance(value, tuple) else value}"
        for field in dataclasses.fields(method)
        if (value := getattr(method, field.name)) != getattr(usual, field.name)
    ]
    return method.name + (f":{','.join(options)}" if options else "")


def train(groups: Iterable[Group], progress: Progress | None = None) -> dict[Key, dict[str, Any]]:
    """Train the rows, or resume their training; what was reached, by table and row.

    Returns:
        Of each row ``top1`` in percent, its ``std`` over the seeds (None for one seed), ``seeds``, and ``training``:
        the recipe and what was changed of it.

    Raises:
        ConfigError: see ``convary.train.compare``.
        KeyboardInterrupt: Ctrl-C; the state is saved.
    """
    reached = {}
    for group in groups:
        results = compare(group.config, progress)
        by_arm = {entry["name"]: entry["top1"] for entry in results["methods"]}
        for key, arm in group.arms.items():
            reached[key] = {
                "top1": by_arm[arm]["mean"],
                "std": by_arm[arm]["std"],
                "seeds": group.config.seeds,
                "data": group.config.data,
                "training": group.config.training(),
                "folder": group.config.out.name,
            }
    return reached


def whole_page() -> str:
    """All tables and all recipes, as the documentation has them."""
    return f"{page(TABLES)}\n{as_markdown()}"
