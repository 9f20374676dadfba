# SPDX-License-Identifier: Apache-2.0
"""The program in this process, and the smallest comparison that it makes."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from PIL import Image

from convary import cli


@pytest.fixture
def run(capsys, monkeypatch):
    """Run the program in this process: exit code, output, and errors with the line breaks as they are."""
    monkeypatch.setenv("COLUMNS", "100")

    def call(*argv):
        try:
            code = cli.main([str(word) for word in argv])
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A folder of class folders with small noise images, dark and bright."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 4)):
        for name, base in (("dark", 40), ("bright", 180)):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(base, base + 60, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def tiny(images):
    """The flags of the smallest comparison; --out is missing."""
    flags = f"--data folder:{images} --image-size 16 --model convnet_nano --epochs 1 --batch-size 8"
    return [*flags.split(), "--methods", "static", "dyconv", "--measure-seconds", "0.01", "--threads", "1", "--cpu"]


@pytest.fixture(scope="session")
def finished(tiny, tmp_path_factory):
    """The folder of a finished tiny comparison, its exit code and what it printed."""
    out, said = tmp_path_factory.mktemp("runs") / "tiny", io.StringIO()
    with contextlib.redirect_stdout(said):
        code = cli.main(["compare", *tiny, "--out", str(out)])
    return out, code, said.getvalue()
