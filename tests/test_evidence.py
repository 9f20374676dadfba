# SPDX-License-Identifier: Apache-2.0
"""docs/evidence.md says what the committed results say, and only true pairs are compared."""

import json
import re
import shutil
from pathlib import Path

import pytest
from studies import page
from studies.blocks import BLOCKS
from studies.results import FOLDER, Arm, read
from studies.run import slim

from convary.errors import DataError
from convary.train import CompareConfig, compare

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_is_what_the_results_make(tmp_path):
    for name in page.SUMMARY:
        shutil.copy(DOCS.parent / name, tmp_path)
    shutil.copytree(DOCS / "methods", tmp_path / "methods")
    shutil.copy(DOCS / "which-method.md", tmp_path)
    page.write(tmp_path, tmp_path)
    for name in page.SUMMARY:
        assert (tmp_path / name).read_text() == (DOCS.parent / name).read_text(), "run python -m studies.page"
    assert (tmp_path / "evidence.md").read_text() == (DOCS / "evidence.md").read_text(), "run python -m studies.page"
    for path in (*(DOCS / "methods").glob("*.md"), DOCS / "which-method.md"):
        assert (tmp_path / path.relative_to(DOCS)).read_text() == path.read_text(), "run python -m studies.page"
    assert (tmp_path / "images" / "evidence.svg").stat().st_size > 10_000


def test_every_block_can_be_run(tmp_path):
    names = [block.name for block in BLOCKS]
    assert len(set(names)) == len(names)
    for block in BLOCKS:
        assert block.config(tmp_path, None, 1).arms() and (not block.base or block.base in names)


def test_results_name_no_folder_of_the_machine():
    for path in FOLDER.glob("*.json"):
        assert not re.findall(r'"[^"]*[ "](?:/|[A-Z]:)\w[^"]*"', path.read_text()), path.name


@pytest.mark.slow
def test_a_block_keeps_what_the_page_needs(tmp_path):
    """studies.run on a small comparison: what slim keeps is what Arm and Page ask for."""
    images = {"data": "fashion-mnist-mini", "limit_train": 100, "epochs": 1, "batch_size": 20, "seeds": 2}
    net = {"model": "convnet_nano", "where": "all & ~first", "methods": ("static", "odconv"), "threads": 1, "cpu": True}
    results = compare(CompareConfig(**images, **net, measure_seconds=0.01, out=tmp_path / "run", root=tmp_path))
    kept = slim(results, "s2-papers")
    assert str(tmp_path) not in json.dumps(kept) and kept["run"]["command"] == "python -m studies.run s2-papers"
    (tmp_path / "s2-papers.json").write_text(json.dumps(kept))
    static, odconv = read(tmp_path)["s2-papers"]
    assert static.gap() is None and odconv.gap()["gaps"] == results["methods"][1]["paired"]["gaps"]
    assert len(page.Page({"s2-papers": [static, odconv]}).table("s2-papers").splitlines()) == 4


@pytest.fixture
def folder(tmp_path):
    """Results of a block beside those of the one that it is paired with: equal settings, another arm."""
    folder = tmp_path / "results"
    folder.mkdir()
    content = json.loads((FOLDER / f"{PAIRED.base}.json").read_text())
    (folder / f"{PAIRED.base}.json").write_text(json.dumps(content))
    content["arms"] = [arm for arm in content["arms"] if arm["name"] == "odconv"]
    (folder / f"{PAIRED.name}.json").write_text(json.dumps(content))
    return folder


PAIRED = next(block for block in BLOCKS if block.base)


def test_blocks_pair_with_the_static_network_of_another(folder):
    (arm,) = read(folder)[PAIRED.name]
    (same,) = (arm for arm in read(folder)[PAIRED.base] if arm.name == "odconv")
    assert arm.gap() == same.gap() and arm.gap()["gaps"][1] == arm.tops[1] - arm.base["test_top1"][1]


def made(name, params, tops, base=None, ratio=None):
    """An arm of which only this is known."""
    entry = {"name": name, "params": params, "test_top1": tops}
    return Arm(entry, entry if base is None else base.entry, None if ratio is None else {"step": {"ratio": ratio}})


def test_a_gap_at_equal_cost_is_interpolated_seed_by_seed():
    static = made("static", 100, [60.0, 61.0, 62.0])
    wide = made("static@2", 400, [70.0, 71.0, 74.0], static, 3.0)
    other = made("static", 100, [0.0, 0.0, 0.0])  # of another block
    dynamic = made("odconv", 200, [66.0, 65.0, 68.0], static, 1.0)
    family = [static, wide, other, dynamic]
    assert dynamic.gap_at_equal("params", family)["gaps"] == pytest.approx(
        [1.0, -1.0, 0.0]
    )  # half-way, in the logarithm
    assert dynamic.gap_at_equal("step", family)["gaps"] == pytest.approx([6.0, 4.0, 6.0])
    assert made("odconv", 500, [1.0, 1.0, 1.0], static).gap_at_equal("params", family) is None
    assert made("odconv", 500, [1.0, 1.0, 1.0], static).gap_at_equal("step", family) is None


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("machine", "code"), "0" * 16, "differ in code"),
        (("data", "train"), 8000, "differ in data"),
        (("run", "epochs"), 10, "differ in epochs"),
        (("run", "seeds"), [0, 1], "differ in seeds"),
    ],
)
def test_results_that_are_no_pairs_are_refused(folder, place, value, said):
    path = folder / f"{PAIRED.name}.json"
    content = json.loads(path.read_text())
    content[place[0]][place[1]] = value
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=f"{PAIRED.name} and {PAIRED.base} {said}.*run both again"):
        read(folder)


def test_a_block_without_its_base_is_refused(folder):
    (folder / f"{PAIRED.base}.json").unlink()
    with pytest.raises(DataError, match=f"is paired with {PAIRED.base}, which has no results"):
        read(folder)
