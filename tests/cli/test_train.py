# SPDX-License-Identifier: Apache-2.0
"""``train`` lists the systems and names what is wrong."""

from __future__ import annotations

import re

import pytest

from convary import cli
from convary.systems import SYSTEMS, config_of
from tests.cli.calls import SOURCE


def test_train_lists_the_systems(capsys):
    assert cli.main(["train"]) == 0
    said = capsys.readouterr().out
    assert all(name in said and title in said for name, (title, *_) in SYSTEMS.items())


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_is_what_the_list_says(name):
    config = config_of(name)
    assert (config.name, config.title) == (name, SYSTEMS[name][0])


def test_every_system_is_listed():
    folder = SOURCE / "convary" / "systems"
    found = [
        name for file in folder.glob("*.py") for name in re.findall(r'    name: .* = "([\w-]+)"', file.read_text())
    ]
    assert sorted(found) == sorted(SYSTEMS)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["train", "hdfnett"], "no system 'hdfnett'.*did you mean 'hdfnet'"),
        (["train", "dmnet", "--stepz", "3"], "--stepz; did you mean '--steps'"),
        (["train", "dmnet", "--steps", "0"], "steps must be at least 1; got 0"),
    ],
)
def test_train_names_what_is_wrong(capsys, argv, said):
    assert cli.main(argv) == 2
    assert re.search(said, capsys.readouterr().err)
