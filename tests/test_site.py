# SPDX-License-Identifier: Apache-2.0
"""The documentation as a site: it builds strictly, its pictures open, and axe finds what only its theme could mend."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.report.chromium import Chromium, found

ROOT = Path(__file__).parent.parent
AXE = Path(sys.prefix) / "node" / "node_modules" / "axe-core" / "axe.min.js"
PAGES = ("index", "gallery", "which-method", "methods/odconv", "benchmarks", "evidence", "api/methods")
THEMES = {"landmark-unique", "scrollable-region-focusable"}  # code's copy buttons, and tables wider than a phone
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not all(map(importlib.util.find_spec, ("mkdocs", "mkdocstrings"))), reason="no mkdocs"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as CI builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})
    return folder


def test_pictures_open(site):
    page = (site / "methods" / "odconv.html").read_text()
    assert '<a class="picture" href="../images/methods/odconv.svg">' in page
    assert (site / "images" / "methods" / "odconv.svg").is_file()


def test_layers_have_their_options(site):
    page = (site / "api" / "methods.html").read_text()
    for layer in ("ODConv1d", "ODConv2d", "ODConv3d"):
        entry = page.partition(f'id="convary.{layer}"')[2].partition("<h2")[0]
        assert "kernel_activation" in entry and "randn" in entry


@pytest.mark.skipif(found() is None, reason="no Chromium")
@pytest.mark.skipif(not AXE.exists(), reason="no axe-core; make browser brings it")
@pytest.mark.parametrize(("dark", "width"), [(False, 1280), (True, 1280), (False, 390)])
def test_axe_finds_only_what_is_the_themes(site, dark, width):
    with Chromium() as page:
        for name in PAGES:
            page.open(site / f"{name}.html", width, dark=dark)
            page.run(AXE.read_text())
            code = "axe.run().then(done => done.violations.map(v => [v.id, v.nodes.map(n => n.html).slice(0, 3)]))"
            assert [rule for rule in page.run(code) if rule[0] not in THEMES] == [], name
