# SPDX-License-Identifier: Apache-2.0
"""Tables as text, Markdown, CSV and JSON: published beside ours."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from convary.papers.check import EXACT, EXACT_ALONE, PRINTED, madds_check, params_check
from convary.papers.ours import count
from convary.papers.row import Row, Table
from convary.text import columns

Record = dict[str, Any]
Reached = Mapping[tuple[str, str], Record]  # by the names of a table and a row

TITLES = {
    "params": "params", "added": "params added", "madds": "MAdds", "top1": "top-1", "top5": "top-5",
    "error": "top-1 error", "box_ap": "box AP", "mask_ap": "mask AP", "miou": "mIoU", "cpu": "ms on a CPU",
    "latency": "ms", "rate": "images/s", "train_rate": "images/s in training", "memory": "peak MB",
}  # fmt: skip


MEASURED = {
    "inference here": ("inference",), "training here": ("training",),
    "released inference here": ("released", "inference"), "released training here": ("released", "training"),
}  # fmt: skip


def records(table: Table, reached: Reached | None = None, measured: Reached | None = None) -> list[Record]:
    """What there is to say of each row; recalled numbers are left out.

    Args:
        table: The table.
        reached: What trainings of rows reached.
        measured: What rows cost on this machine, see ``convary.bench.rows``.
    """
    keys = [(table.name, row.name) for row in table.rows]
    known = [((reached or {}).get(key), (measured or {}).get(key)) for key in keys]
    return [_record(table, row, *found) for row, found in zip(table.rows, known, strict=True)]


def _record(table: Table, row: Row, reached: Record | None, measured: Record | None) -> Record:
    ours = count(row)
    recalled = [TITLES[name] for name, _ in row.recalled.items()]
    return {
        "table": table.name,
        "row": row.name,
        "title": row.title,
        "network": row.network,
        "method": None if row.method is None else json.loads(row.method.to_json()),
        "where": row.where,
        "recipe": row.recipe,
        "published": dict(row.published.items()),
        "recalled": recalled,
        "source": {"paper": table.source.paper, "place": table.source.place, "url": table.source.url},
        "ours": None if ours is None else {name: getattr(ours, name) for name in ours.__dataclass_fields__},
        "params_check": params_check(row, ours),
        "madds_check": madds_check(row, ours),
        "counted": row.count is not None and ours is not None,
        "obstacle": row.obstacle,
        "untrained": row.untrained,
        "trained": bool(row.recipe or row.detector) and not row.obstacle,
        "note": row.note,
        "reached": reached,
        "measured": measured,
    }


def agreement(found: Iterable[Record]) -> list[str]:
    """How many of how many numbers of ours agree: the lines above all tables."""
    found = list(found)
    counted = [record for record in found if record["counted"]]
    printed = [record for record in found if record["params_check"] and not record["counted"]]
    static = [record for record in found if record["madds_check"]]
    otherwise = sum(record["params_check"] == EXACT_ALONE for record in counted)
    apart = sum(record["network"] is None for record in found)
    trained = sum(record["trained"] for record in found)
    lacking = sum(bool(record["untrained"]) and not record["obstacle"] for record in found)
    refused = len(found) - trained - lacking
    return [
        f"Parameters: {_share(counted, 'params_check', EXACT)} rows whose authors' network was counted are exact "
        f"({otherwise} of them are printed otherwise); of the others with a printed number, "
        f"{_share(printed, 'params_check', PRINTED)} agree with it.",
        f"Multiply-adds of static networks: {_share(static, 'madds_check', PRINTED)} agree with the printed number.",
        f"{apart} of {len(found)} rows have no network here.",
        f"`--data` trains {trained} of {len(found)} rows by their own recipe; {lacking} have a network and a method, "
        f"but no training that is known: `--recipe` gives them another one; {refused} are not trained, and say why.",
    ]


def _share(found: Sequence[Record], key: str, wanted: str) -> str:
    return f"{sum(record[key].startswith(wanted) for record in found)} of {len(found)}"


def _cells(found: Sequence[Record]) -> list[list[str]]:
    """A header and a line for each row; columns that say nothing are left out."""
    names = [name for name in TITLES if any(name in record["published"] for record in found)]
    lines = [["row", "", *(TITLES[name] for name in names), "params here", "", "MACs here", "", "routing", "assembly"]]
    for record in found:
        ours = record["ours"] or {}
        lines.append(
            [
                record["row"],
                record["title"],
                *(record["published"].get(name, "–") for name in names),
                f"{ours['params']:,}" if ours else "–",
                record["params_check"],
                *((_millions(ours["convolution"]), record["madds_check"]) if ours else ("–", "")),
                *((_millions(ours[part]) for part in ("routing", "assembly")) if ours else ("–", "–")),
            ]
        )
    if any(record["reached"] for record in found):
        lines = [[*line, cell] for line, cell in zip(lines, ["reached", *map(_reached, found)], strict=True)]
    for title, path in MEASURED.items():
        cells = [_time(record["measured"], path) for record in found]
        lines = [[*line, cell] for line, cell in zip(lines, [title, *cells], strict=True)]
    kept = [i for i in range(len(lines[0])) if any(line[i] not in ("", "–") for line in lines[1:])]
    return [[line[i] for i in kept] for line in lines]


def _millions(macs: int) -> str:
    return f"{macs / 1e6:,.{1 if macs >= 1e7 else 2}f}M" if macs else "–"


def _time(measured: Record | None, path: tuple[str, ...]) -> str:
    """Milliseconds, and of a dynamic network how many times the static one's, with the spread."""
    found: Any = measured
    for name in path:
        found = (found or {}).get(name)
    if not found:
        return "–"
    ratio = f", {found['ratio']:.2f}x ({found['low']:.2f} to {found['high']:.2f})" if "ratio" in found else ""
    return f"{found['ms']:.1f} ms{ratio}"


def _reached(record: Record) -> str:
    found = record["reached"]
    if not found:
        return "–"
    scores = [(name, title) for name, title in TITLES.items() if name in found]
    spreads = {name: found["std"] if name == "top1" else found[f"{name}_std"] for name, _ in scores}
    told = {name: f"{found[name]:.2f}" + ("" if std is None else f" ± {std:.2f}") for name, std in spreads.items()}
    if "error" in record["published"] and "top1" in told:
        told["top1"] = told["top1"].replace(f"{found['top1']:.2f}", f"{100 - found['top1']:.2f}", 1)
    return told["top1"] if "top1" in told else ", ".join(f"{title} {told[name]}" for name, title in scores)


def notes(found: Iterable[Record]) -> list[str]:
    """What must be known of single rows; what several have in common is said once."""
    said: dict[str, list[str]] = {}
    for record in found:
        recalled = f"not printed, as it is recalled only: {', '.join(record['recalled'])}" if record["recalled"] else ""
        by = record["reached"]
        reached = f"reached on {by['data']} by {by['training']}" if by else ""
        own = record["untrained"] and not by and f"no recipe of its own: {record['untrained']}"
        refused = record["obstacle"] and f"not trained: {record['obstacle']}"
        for text in (record["note"], refused, own, recalled, reached):
            if text:
                said.setdefault(text[0].upper() + text[1:].rstrip(".") + ".", []).append(record["row"])
    return [f"{', '.join(rows)}: {text}" for text, rows in said.items()]


def text(table: Table, found: Sequence[Record]) -> str:
    """A table for the terminal."""
    lines = [f"{table.title}  ({table.name})", f"{table.source.paper}; {table.source.place}", table.source.url, ""]
    lines += columns(_cells(found))
    below = [table.note, *notes(found)]
    return "\n".join([*lines, *([""] if any(below) else []), *filter(None, below)])


def markdown(table: Table, found: Sequence[Record]) -> str:
    """A table as a section of a page."""
    head, *lines = _cells(found)
    rule = ["---", *("---:" if i > 1 else "---" for i in range(1, len(head)))]
    grid = "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))
    below = "".join(f"- {line}\n" for line in notes(found))
    said = f"\n{table.note}\n" if table.note else ""
    source = f"{table.source.paper}; [{table.source.place}]({table.source.url})."
    return f"## {table.title}\n\n`convary reproduce {table.name}`. {source}\n{said}\n{grid}\n" + (
        f"\n{below}" if below else ""
    )


def as_csv(found: Sequence[Record]) -> str:
    """A line for each row of all tables."""
    flat = [_flat(record) for record in found]
    names = list(dict.fromkeys(name for record in flat for name in record))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue().rstrip("\n")


def _flat(record: Record) -> Record:
    plain = {name: value for name, value in record.items() if not isinstance(value, (dict, list)) and value is not None}
    published = {f"published_{name}": value for name, value in record["published"].items()}
    ours = {f"our_{name}": value for name, value in (record["ours"] or {}).items()}
    method = {} if record["method"] is None else {"method": json.dumps(record["method"])}
    reached = {f"reached_{name}": value for name, value in (record["reached"] or {}).items()}
    source = {"source": f"{record['source']['paper']}; {record['source']['place']}", "url": record["source"]["url"]}
    recalled = {"recalled": ", ".join(record["recalled"])}
    measured = _joined(record["measured"] or {}, "measured")
    return {**plain, **method, **published, **ours, **source, **recalled, **reached, **measured}


def _joined(values: Mapping[str, Any], name: str) -> Record:
    """Values of values, by their names in a row."""
    flat: Record = {}
    for key, value in values.items():
        flat |= _joined(value, f"{name}_{key}") if isinstance(value, Mapping) else {f"{name}_{key}": value}
    return flat


def as_json(found: Sequence[Record]) -> str:
    """All tables as one JSON document."""
    return json.dumps({"schema": 1, "rows": list(found)}, indent=1, ensure_ascii=False)


INTRODUCTION = """\
What the papers print beside what this package makes of torchvision's and timm's networks.
`convary reproduce` lists the tables, `convary reproduce odconv-resnet` prints one, and
`python scripts/paper_tables.py` writes this page.

- **Published** numbers stand exactly as they are printed, with the place where they were read. A number that is only
  recalled is left out, and the row says so.
- **params** is exact where the network of the authors' own code was built and counted, parameter by parameter (or
  where a rule is known that gives all their counts). "As printed" means that ours rounds to the printed number.
- **MACs here** are multiply-adds of convolutions and linear layers for one image of 224x224. Norms, activations,
  pooling and biases count nothing. **Routing** (what makes coefficients) and **assembly** (what makes kernels of
  them) stand apart, because each paper adds them, or part of them, by a convention that it does not state. So only
  static networks are compared with the printed multiply-adds.
- **ResNet v1 and v1.5**: the multiply-adds published for ResNet-50 and -101 are those of v1, where a bottleneck strides
  in its first, 1x1 layer. torchvision's, timm's and most released code is v1.5 and strides in the 3x3: 231.2M more.
  Rows with such a number are counted as v1 here. Parameters are the same, and what is trained is v1.5.
- We have **not reproduced the accuracies**. `--data` trains rows, see [Reproduce a table](guides/reproduce.md).
"""


def page(tables: Iterable[Table], reached: Reached | None = None) -> str:
    """All tables as a page of Markdown."""
    found = [(table, records(table, reached)) for table in tables]
    lines = "\n".join(f"- {line}" for line in agreement(record for _, part in found for record in part))
    sections = "\n".join(markdown(table, part) for table, part in found)
    return f"# Published tables\n\n{lines}\n\n{INTRODUCTION}\n{sections}"


FORMATS: dict[str, Callable[[Sequence[tuple[Table, Sequence[Record]]]], str]] = {
    "text": lambda found: "\n\n\n".join(text(table, part) for table, part in found),
    "markdown": lambda found: "\n".join(markdown(table, part) for table, part in found).rstrip("\n"),
    "json": lambda found: as_json([record for _, part in found for record in part]),
    "csv": lambda found: as_csv([record for _, part in found for record in part]),
}
