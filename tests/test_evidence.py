# SPDX-License-Identifier: Apache-2.0
"""docs/evidence.md says what the committed results say, and only true pairs are compared."""

import json
import shutil
from pathlib import Path

import pytest
from studies import page
from studies.blocks import BLOCKS
from studies.results import FOLDER, read

from convary.errors import DataError

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_is_what_the_results_make(tmp_path):
    readme = tmp_path / "README.md"
    shutil.copy(page.README, readme)
    page.write(tmp_path, readme)
    assert readme.read_text() == page.README.read_text(), "run python -m studies.page"
    assert (tmp_path / "evidence.md").read_text() == (DOCS / "evidence.md").read_text(), "run python -m studies.page"
    assert (tmp_path / "images" / "evidence.svg").stat().st_size > 10_000


def test_every_block_can_be_run(tmp_path):
    names = [block.name for block in BLOCKS]
    assert len(set(names)) == len(names)
    for block in BLOCKS:
        assert block.config(tmp_path, None, 1).arms() and (not block.base or block.base in names)


def change(block, **changes):
    """A copy of the results in which ``block`` was run otherwise."""

    def made(folder):
        shutil.copytree(FOLDER, folder)
        content = json.loads((folder / f"{block}.json").read_text())
        for place, value in changes.items():
            part, _, key = place.partition("__")
            content[part][key] = value
        (folder / f"{block}.json").write_text(json.dumps(content))
        return folder

    return made


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"machine__code": "0" * 16}, "differ in code"),
        ({"data__train": 8000}, "differ in data"),
        ({"run__epochs": 10}, "differ in epochs"),
        ({"run__seeds": [0, 1]}, "differ in seeds"),
    ],
)
def test_results_that_are_no_pairs_are_refused(tmp_path, changes, said):
    block = next(block for block in BLOCKS if block.base and (FOLDER / f"{block.name}.json").exists())
    with pytest.raises(DataError, match=f"{block.name} and {block.base} {said}.*run both again"):
        read(change(block.name, **changes)(tmp_path / "results"))


def test_a_block_without_its_base_is_refused(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "results")
    (tmp_path / "results" / "s2-papers.json").unlink()
    with pytest.raises(DataError, match="is paired with s2-papers, which has no results"):
        read(tmp_path / "results")
