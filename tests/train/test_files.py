# SPDX-License-Identifier: Apache-2.0
"""Folders that belong to a run."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from convary.errors import CheckpointError, ConfigError, ConvaryError
from convary.models.architecture import COMPARED
from convary.train.checkpoint import SYSTEM, read_checkpoint, write_checkpoint
from convary.train.files import claim_folder

RUN = {"epochs": 3, "lr": 0.1}


@pytest.fixture
def read_only():
    """A folder that this process may not write; root steps down to another user for the time of the test."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield folder
    if root:
        os.seteuid(0)
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_read_only_folder_is_named(read_only):
    with pytest.raises(ConvaryError, match=r"Permission denied.*choose another folder with --out") as caught:
        claim_folder(read_only / "run", RUN, "now")
    assert str(read_only / "run") in str(caught.value)
    with pytest.raises(ConvaryError, match=r"cannot write .*run\.json: Permission denied"):
        claim_folder(read_only, RUN, "now")


def test_folder_is_claimed_once(tmp_path):
    assert claim_folder(tmp_path / "a" / "run", RUN, "first") == "first"
    assert claim_folder(tmp_path / "a" / "run", RUN, "second") == "first"


def test_folder_of_another_run(tmp_path):
    claim_folder(tmp_path, RUN, "now")
    with pytest.raises(ConfigError, match="another run: epochs 3 there and 4 here; give the settings"):
        claim_folder(tmp_path, {**RUN, "epochs": 4}, "now")


def test_folder_of_something_else(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match=r"is not empty \(it has thesis.tex\)"):
        claim_folder(tmp_path, RUN, "now")
    with pytest.raises(ConfigError, match="is a file"):
        claim_folder(tmp_path / "thesis.tex", RUN, "now")


@pytest.mark.parametrize("content", ["", "[]", '{"config": 3}', "\x00"])
def test_foreign_run_file(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ConfigError, match=r"run\.json is not the record of a run"):
        claim_folder(tmp_path, RUN, "now")


def test_killed_while_claiming(tmp_path):
    (tmp_path / "run.json.part").write_text("{")
    claim_folder(tmp_path, RUN, "now")
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize(("written", "wanted", "writer"), [(SYSTEM, COMPARED, "compare"), (COMPARED, SYSTEM, "train")])
def test_a_checkpoint_of_the_other_command_is_refused(tmp_path, written, wanted, writer):
    path = tmp_path / "checkpoint.pt"
    write_checkpoint(path, {"step": 1}, format=written)
    assert read_checkpoint(path, format=written)["step"] == 1
    with pytest.raises(CheckpointError, match=f"is not such a checkpoint; give a file that convary {writer} wrote"):
        read_checkpoint(path, format=wanted)
