# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser: pointer, keyboard, sorting, hiding, enlarging, paper, phone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from convary import report
from convary.report import system as system_page
from tests.report.chromium import Chromium, found

AXE = Path(sys.prefix) / "node" / "node_modules" / "axe-core" / "axe.min.js"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(found() is None, reason="no Chromium; install one, or name it in $CHROMIUM"),
]
TIP = "(() => { const tip = document.querySelector('#tip.on'); return tip && tip.textContent; })()"


@pytest.fixture(scope="module")
def results(synthetic):
    """Synthetic results of three networks."""
    return synthetic(methods=("static", "dyconv", "odconv"), seeds=3)


@pytest.fixture(scope="module")
def path(results, tmp_path_factory):
    """Their page."""
    path = tmp_path_factory.mktemp("browser") / "report.html"
    report.write(results, path)
    return path


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    """The page of a trained system; its numbers are invented."""
    folder = tmp_path_factory.mktemp("system")
    Image.new("RGB", (700, 200)).save(folder / "found.png")
    curve = [{"step": n, "losses": {"bce": 1 / n, "edge": 2 / n}, "scores": {"mae": 0.5 / n}} for n in (1, 2, 3)]
    results = {
        "system": "made-up",
        "title": "Made up",
        "scored_on": "Scored on nothing.",
        "scores": {"mae": 0.17},
        "measures": {"mae": "mean absolute error; lower is better"},
        "curve": curve,
        "params": 1000,
        "seconds": 61.0,
        "pictures": ["found.png"],
        "run": {"command": "convary train made-up", "steps": 3},
        "machine": {"cpu": "none", "convary": "0"},
    }
    system_page.write(results, folder, folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def chromium():
    """One browser for all tests."""
    with Chromium() as browser:
        yield browser


@pytest.fixture
def page(chromium, path):
    """The page in a desktop's window; no script may have failed by the end of the test."""
    chromium.open(path)
    yield chromium
    bad = [event for event in chromium.events if event.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")]
    assert not bad


def test_a_point_answers_the_pointer(page, results):
    page.hover("circle.mark[data-m=odconv]")
    odconv = next(method for method in results["methods"] if method["name"] == "odconv")
    assert page.run(TIP).startswith(f"ODConv: {odconv['top1']['mean']:.2f} ±")
    page.hover("h1")
    assert page.run(TIP) is None


def test_a_cell_says_layer_class_and_value(page, results):
    entry = results["methods"][1]["routing"][0]
    page.hover(".map .mark", 4)  # the first of the first class: four means come before it
    name, value = results["data"]["classes"][0], entry["by_class"][0][0]
    assert page.run(TIP) == f"{entry['layer']}, kernels 1, {name}: {value:.3f}"


def test_a_bar_says_its_share(page, results):
    page.hover(".bars i.mark")
    share = results["methods"][0]["correlation"]["bands"][0]
    assert page.run(TIP) == f"static: {100 * share:.1f} % none"


def test_arrows_go_from_point_to_point(page):
    page.run("document.querySelector('#curves [data-marks]').focus()")
    page.press("ArrowRight")
    first = page.run(TIP)
    page.press("ArrowRight")
    second = page.run(TIP)
    page.press("ArrowLeft")
    assert first and second and first != second and page.run(TIP) == first
    assert page.run("document.activeElement.getAttribute('aria-label')") == first


def test_arrows_go_up_and_down_in_a_map(page):
    page.run("document.querySelector('.map').focus()")
    page.press("ArrowDown")
    assert ", mean: " in page.run(TIP)
    page.press("ArrowDown")
    assert ", T-shirt/top: " in page.run(TIP)


COLUMN = "[...document.querySelectorAll('.headline tbody tr')].map(row => row.cells[1].dataset.v)"


def test_columns_sort_by_click_and_by_key(page, results):
    scores = [str(method["top1"]["mean"]) for method in results["methods"]]
    assert page.run(COLUMN) == scores
    page.click(".headline thead tr:last-child button", 1)
    assert page.run(COLUMN) == sorted(scores, key=float, reverse=True)
    page.run("document.querySelectorAll('.headline thead tr:last-child button')[1].focus()")
    page.press("Enter")
    assert page.run(COLUMN) == sorted(scores, key=float)
    sorts = "[...document.querySelectorAll('.headline [aria-sort]')].map(head => head.getAttribute('aria-sort'))"
    assert page.run(sorts)[:3] == ["none", "ascending", "none"]
    page.click(".headline thead tr:last-child button", 2)
    assert page.run(COLUMN)[-1] == scores[0], "static has no gap to itself and stays last"


SEEN = (
    "[...document.querySelectorAll('main [data-m=odconv]:not(button)')].filter(e => e.getClientRects().length).length"
)


def test_a_legend_entry_hides_its_network_in_all_figures(page):
    before = page.run(SEEN)
    page.click("#curves .legend button[data-m=odconv]")
    assert before > 20 and page.run(SEEN) == 0
    pressed = "[...document.querySelectorAll('button[data-m=odconv]')].map(key => key.getAttribute('aria-pressed'))"
    assert set(page.run(pressed)) == {"false"}
    assert page.run("document.querySelector('.headline').textContent.includes('ODConv')"), "the table keeps it"
    page.run("document.querySelector('#cost .legend button[data-m=odconv]').focus()")
    page.press("Enter")
    assert page.run(SEEN) == before


def test_a_figure_grows_and_comes_back(page):
    width = "document.querySelector('svg[aria-label=\"Loss over epochs\"]').getBoundingClientRect().width"
    before, parts = page.run(width), page.run("document.querySelectorAll('#curves svg').length")
    page.click("[aria-label='Enlarge: Loss over epochs']")
    assert page.run(width) > 2 * before
    page.hover("dialog circle.mark")
    assert page.run(TIP)
    page.press("Escape")
    assert page.run(width) == before
    assert page.run("document.querySelectorAll('#curves svg').length") == parts


@pytest.mark.skipif(not AXE.exists(), reason="no axe-core; make browser brings it")
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("which", ["path", "system"])
def test_axe_finds_nothing(chromium, which, dark, width, request):
    chromium.open(request.getfixturevalue(which), width, dark=dark)
    chromium.run("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    chromium.run(AXE.read_text() + "; 0")
    found = chromium.run(
        "axe.run().then(done => done.violations.map(v => [v.id, v.nodes.map(n => n.html).slice(0, 3)]))"
    )
    assert found == []


def test_the_page_of_a_system_answers_and_fits_a_phone(chromium, system):
    chromium.open(system, 390)
    assert chromium.run("document.documentElement.scrollWidth <= innerWidth")
    chromium.hover("circle.mark[data-m=edge]", 1)
    assert chromium.run(TIP) == "edge 1 at step 2"
    chromium.click("#scores thead button")
    assert chromium.run("document.querySelector('#scores th[aria-sort]') !== null")


def test_everything_is_there_without_script(chromium, path, results):
    chromium.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        chromium.open(path)
        text = chromium.run("document.body.innerText")
    finally:
        chromium.call("Emulation.setScriptExecutionDisabled", value=False)
    for method in results["methods"]:
        assert f"{method['top1']['mean']:.2f}" in text
    assert "Enlarge" not in text


def test_the_slider_chooses_a_temperature(page):
    steps = "[...document.querySelector('.temperatures').querySelectorAll('[data-t]')]"
    shown = steps + ".filter(step => step.offsetHeight).map(step => step.dataset.t)"
    assert page.run(shown) == ["1"]
    page.run("document.querySelector('.temperatures input').focus()")
    page.press("ArrowLeft")
    assert page.run(shown) == ["5.48"]
    page.press("ArrowLeft")
    page.press("ArrowLeft")
    assert page.run(shown) == ["30"]
    assert page.run("document.querySelector('.temperatures output').textContent") == "30"


def test_without_script_three_temperatures_are_there(chromium, path):
    chromium.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        chromium.open(path)
        text = chromium.run("document.querySelector('.temperatures').innerText")
    finally:
        chromium.call("Emulation.setScriptExecutionDisabled", value=False)
    assert [f"Temperature {t}" in text for t in ("30", "5.48", "1")] == [True] * 3


def test_an_image_says_its_share(page, results):
    page.hover(".experts .pic")
    entry = results["methods"][1]["experts"]
    chosen = max(entry, key=lambda e: _variation(results["methods"][1], e["layer"]))
    index, share = chosen["images"][0][0], chosen["shares"][0][0]
    assert f"test image {index}: {100 * share:.0f} % of the mixture is expert 1" in page.run(TIP)


def _variation(method, name):
    return next(layer["variation"] for layer in method["diagnosis"]["layers"] if layer["layer"] == name)


# Pixels of the smallest letters that are to be read, whatever scales them.
SMALLEST = """(() => {
  const sizes = [];
  for (const walk = document.createTreeWalker(document.querySelector("body"), NodeFilter.SHOW_TEXT); walk.nextNode();) {
    const parent = walk.currentNode.parentElement;
    const text = walk.currentNode.data.trim();
    if (!text || !parent.getClientRects().length || parent.closest("script, style, title, .glyph")) continue;
    const matrix = parent.getScreenCTM ? parent.getScreenCTM() : null;
    const scale = matrix ? Math.hypot(matrix.a, matrix.b) : 1;
    sizes.push([scale * parseFloat(getComputedStyle(parent).fontSize), text]);
  }
  return sizes.sort((a, b) => a[0] - b[0])[0];
})()"""


def test_a_phone_shows_legible_text_and_nothing_too_wide(page, path):
    page.open(path, 390, 844)
    assert page.run("document.documentElement.scrollWidth") == 390
    size, text = page.run(SMALLEST)
    assert size >= 9, text
    page.run("document.querySelector('.headline').parentNode.scrollLeft = 400")
    left = "document.querySelector('.headline tbody th').getBoundingClientRect().left"
    assert 0 <= page.run(left) <= 18, "the first column stays"
    assert page.run("getComputedStyle(document.querySelector('.sideways')).display") == "block"


# What a sheet would cut: parts that reach beyond its right edge.
CUT = """[...document.querySelectorAll("main *, header *")].filter(part => part.getClientRects().length &&
  part.getBoundingClientRect().right > innerWidth + 1).map(part => part.outerHTML.slice(0, 90)).slice(0, 5)"""


def test_paper_is_a4_and_nothing_is_cut(page, path):
    assert b"/MediaBox [0 0 594.95996 841.91998]" in page.pdf()
    page.open(path, 703, 1000, media="print")  # 210 mm less two margins of 12
    page.run("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    assert page.run(CUT) == []
    exact = "[...document.querySelectorAll('.ramp, .bar i, .mix')].map(e => getComputedStyle(e).printColorAdjust)"
    assert set(page.run(exact)) == {"exact"}
    assert page.run(
        "[...document.querySelectorAll('h2, h3, h4')].every(h => getComputedStyle(h).breakAfter === 'avoid')"
    )
