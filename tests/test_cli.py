# SPDX-License-Identifier: Apache-2.0
"""The command line: help with real defaults, one line for what goes wrong, exit codes, and the main job end to end."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import convary
from convary import METHODS, cli, models, ops
from convary._cli import compare as compare_command
from convary._cli import options
from convary._cli.bench import KINDS
from convary._cli.convert import Convert
from convary._cli.export import Export
from convary._cli.help import EXAMPLES
from convary._cli.parse import parse
from convary.data import load as load_data
from convary.data.image import read_image
from convary.data.photo_format import KEY
from convary.errors import ConfigError, ConvaryError
from convary.extras import command
from convary.nn import DynamicLayer
from convary.ops.cost import measured
from convary.selector import SELECTORS, selector
from convary.systems import SYSTEMS, config_of
from convary.train import CompareConfig, load_model
from convary.train.classifier import Classifier

SOURCE = Path(convary.__file__).parents[1]


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
    flags = f"--data folder:{images} --image-size 16 --model mobilenet_v2_tiny --epochs 1 --batch-size 8"
    return [*flags.split(), "--methods", "static", "dyconv", "--measure-seconds", "0.01", "--threads", "1", "--cpu"]


@pytest.fixture(scope="session")
def finished(tiny, tmp_path_factory):
    """The folder of a finished tiny comparison, its exit code and what it printed."""
    out, said = tmp_path_factory.mktemp("runs") / "tiny", io.StringIO()
    with contextlib.redirect_stdout(said):
        code = cli.main(["compare", *tiny, "--out", str(out)])
    return out, code, said.getvalue()


def _command(*argv):
    return [sys.executable, "-m", "convary.cli", *map(str, argv)]


def _environment():
    return os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}


def one_line(err):
    """The single line of an error, without its end."""
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    return err.rstrip("\n")


def test_help_lists_every_command(run):
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    assert all(re.search(rf"^  {name} ", out, re.MULTILINE) for name in cli.COMMANDS)
    assert run() == (0, out, "")


WITHOUT_TORCH = [
    ["--help"], ["--version"], ["data"], ["compaer"], ["compare", "--epoch", "3"], ["plan", "--modle", "resnet20"],
    *([name, "--help"] for name in cli.COMMANDS), *(["bench", kind, "--help"] for kind in KINDS),
]  # fmt: skip


@pytest.mark.parametrize("words", WITHOUT_TORCH, ids=" ".join)
def test_help_and_typos_wait_for_no_torch(words):
    code = f"""import sys
from convary.cli import main
try:
    main({words!r})
finally:
    print(sorted({{'torch', 'numpy', 'matplotlib'}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], env=_environment(), capture_output=True, text=True)
    assert done.stdout.endswith("[]\n"), done.stderr


def test_version(run):
    assert run("--version") == (0, f"convary {convary.__version__}\n", "")


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_help_of_each_command(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"usage: convary {command}" in out


def test_help_of_compare_shows_every_field_with_its_real_default(run):
    _, out, _ = run("compare", "--help")
    for field in dataclasses.fields(CompareConfig):
        flag = rf"  --{field.name.replace('_', '-')}\b"
        said = " ".join(re.search(rf"{flag}.*?(?=\n  --|\n\n)", out, re.DOTALL)[0].split())
        if isinstance(field.default, bool):
            assert (f"--no-{field.name}" in said) == said.endswith("(default: on)") == field.default
        elif isinstance(field.default, int | float | str):
            assert said.endswith(f"(default: {field.default})")
        elif field.default in (None, ()):
            assert "default:" not in said


def test_help_of_compare_begins_with_what_a_newcomer_needs(run):
    _, out, _ = run("compare", "--help")
    flags = re.findall(r"^  --([\w-]+)", out, re.MULTILINE)
    assert flags[:8] == ["data", "model", "methods", "where", "epochs", "seeds", "lr", "out"]
    titles = ["what to compare", "training", "large and published trainings", "machine, files and watching", "examples"]
    assert re.findall(r"^(\w[^:\n]*):$", out, re.MULTILINE) == titles


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("command", sorted({*cli.COMMANDS} - {"train", "bench"}))
def test_help_fits_the_terminal(run, monkeypatch, columns, command):
    """All but the examples, which are for copying. Types are words of people."""
    monkeypatch.setenv("COLUMNS", str(columns))
    text = run(command, "--help")[1].partition("examples:")[0]
    assert max(map(len, text.splitlines())) <= min(columns, 100)
    assert "STR" not in text and "None" not in text and "[INT [INT" not in text


@pytest.mark.parametrize("op", ["mixed_conv", "sample_conv", "pixel_conv"])
@pytest.mark.parametrize("rest", ["", "--size 20 --training", "--size 9 8 7 --groups 2 --stride 2"])
def test_explain_takes_every_op(run, op, rest):
    code, out, _ = run(
        "explain", "--op", op, "--batch", "2", "--in-channels", "8", "--out-channels", "8", *rest.split()
    )
    assert code == 0
    assert out.startswith(f"{op}: B=2 C=8 O=8") and "> " in out


def test_explain_measures_when_asked(run, tmp_path, monkeypatch):
    monkeypatch.setenv("CONVARY_CACHE", str(tmp_path))
    measured._times.cache_clear()
    try:
        code, out, _ = run("explain", "--measure", "--batch", "1", "--in-channels", "8", "--size", "9", "9")
    finally:
        ops.autotune(False)
        measured._times.cache_clear()
    assert code == 0
    assert f"measured here, {tmp_path}" in out


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_help_of_plan_shows_the_options_of_the_method(run, method):
    _, out, _ = run("plan", "--method", method.name, "--help")
    assert all(f"--{field.name.replace('_', '-')}" in out for field in dataclasses.fields(method))


@pytest.mark.parametrize(
    "words",
    [
        *([name, "--help"] for name in cli.COMMANDS),
        *(["plan", "--method", config.name, "--help"] for config in METHODS),
        *(["train", name, "--help"] for name in SYSTEMS),
    ],
    ids=" ".join,
)
def test_help_reads_as_plain_text(run, words):
    out = run(*words)[1]
    assert "``" not in out and "{None}" not in out and "\x1b" not in out
    assert ("examples:" in out) == (words[0] not in ("bench", "train"))


@pytest.mark.parametrize(
    ("prog", "words"),
    [(p, words) for p, lines in EXAMPLES.items() for words, _ in lines if (p, words) != ("data", "")],  # not parsed
)
def test_examples_in_the_help_can_be_parsed(prog, words, monkeypatch):
    """Up to what they would do: every command stops after its flags were read."""
    module = importlib.import_module(cli.COMMANDS[prog.split()[0]][0])

    class Parsed(Exception): ...

    def parsed(flags, argv, prog, **more):
        parse(flags, argv, prog, **more)
        raise Parsed

    for place in (module, options, sys.modules[parse.__module__]):
        monkeypatch.setattr(place, "parse", parsed, raising=False)
    with pytest.raises((Parsed, SystemExit)):
        module.run([*prog.split()[1:], *shlex.split(words)])


def test_optional_flags_are_read_as_their_kind():
    flags = parse(Export, ["--out", "a.onnx", "--model", "timm:x", "--shape", "3", "8", "9", "--dynamic"], "p")
    assert (flags.model, flags.shape, flags.dynamic) == ("timm:x", (3, 8, 9), ())
    assert parse(Export, ["--out", "a.onnx", "--dynamic", "0", "2"], "p").dynamic == (0, 2)
    assert parse(CompareConfig, ["--clip", "0.5", "--limit-train", "7"], "p").clip == 0.5


WRONG = [
    ("compaer", "did you mean 'compare'?"),
    ("--versoin", "there is no flag '--versoin'"),
    ("compare --epoch 3", "no flag --epoch; did you mean '--epochs'?"),
    ("compare --epochs x", "--epochs: invalid literal for int()"),
    ("compare --epochs 0", "epochs must be at least 1; got 0"),
    ("compare --methods static odcnov", "did you mean 'odconv'?"),
    ("compare --init papr", "invalid choice 'papr'"),
    ("compare --data fashion-mnist-mni --out {tmp}/o", "did you mean 'fashion-mnist-mini'?"),
    ("compare --model resnet2 --out {tmp}/o", "did you mean 'resnet20'?"),
    ("compare --data folder:{tmp} --out {tmp}/o", "{tmp} has 0 class folders"),
    ("compare --methods odconv:expert=2", "did you mean 'experts'?"),
    ("plan --model resnet20", "Missing from convary plan: --method"),
    ("plan --model resnet18 --method odconv", "torchvision has it: torchvision:resnet18"),
    ("compare --model resnet18 --out {tmp}/o", "torchvision has it: torchvision:resnet18"),
    ("plan --model efficientnet_lite0 --method odconv", "timm has it: timm:efficientnet_lite0"),
    ("plan --model resnet20 --method dyconf", "did you mean 'dyconv'?"),
    ("plan --model resnet20 --method odconv --expert 2", "did you mean '--experts'?"),
    ("plan --model resnet20 --method odconv --experts 0", "experts must be at least 1; got 0"),
    ("plan --model resnet20 --method odconv --where frist", "did you mean 'first'?"),
    ("explain --in-channels 32 --groups 3", "groups must divide both channel counts"),
    ("explain --size 8 8 8 8", "want --size of 1 to 3 numbers"),
    ("explain --op pixel_conv --kernel-size 40 --padding 1", "the kernels reach over [40, 40] positions"),
    ("explain --batch 0", "--batch must be at least 1; got 0"),
    ("explain --op mixd", "invalid choice 'mixd'"),
    ("explain --experts 100000000000", "GB of memory were asked for; give other numbers"),
    ("explain --size 100000000 100000000 100000000", "beyond this machine"),
    ("plan --model resnet20 --method odconv --reduction 1e-300", "beyond this machine"),
    ("plan --model resnet20 --method odconv --classes -3", "--classes must be at least 1; got -3"),
    ("plan --model resnet20 --method odconv --shape -3 8 8", "--shape must be at least 1; got -3"),
    ("plan --model resnet20 --method odconv --where name(1)", "where.name wants texts"),
    (
        "plan --model torchvision:inception_v3 --method odconv --shape 3 32 32",
        "Inception3 can't take a Tensor of shape",
    ),
    ("plan --model convnet_nano@1e9 --method odconv", "GB of memory were asked for"),
    (
        "export --model timm:test_byobnet --weights random --out {tmp}/x.pt2 --shape -3 8 8",
        "--shape must be at least 1",
    ),
    ("export nothing.pt --out {tmp}/x.pt2 --shape 3 0 8", "--shape must be at least 1; got (3, 0, 8)"),
    ("convert --model torchvision:resnet18 --method odconv --out {tmp}", "cannot write {tmp}: it is a folder"),
    ("convert --model resnet20 --method odconv --out {tmp}/x.pt", "nobody trained resnet20"),
    ("compare --threads 100000000 --out {tmp}/o", "threads must be from 1 to 1024; got 100000000"),
    ("train hdfnet --threads 100000000 --out {tmp}/o", "threads must be from 1 to 1024"),
    ("bench layers --threads 100000000", "--threads must be from 1 to 1024"),
    ("eval {tmp}/none.pt --batch-size 0", "--batch-size must be at least 1"),
    ("explain stray", "stray"),
    ("eval {tmp}/none.pt", "no checkpoint {tmp}/none.pt"),
    ("eval", "Missing from convary eval: CHECKPOINT"),
    ("data fashion-mnist-mni", "did you mean 'fashion-mnist-mini'?"),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=[words for words, _ in WRONG])
def test_bad_arguments_are_one_line_and_exit_2(run, tmp_path, words, message):
    code, out, err = run(*words.format(tmp=tmp_path).split())
    line = one_line(err)
    assert (code, out) == (2, "")
    assert line.startswith("convary: error: ")
    assert message.format(tmp=tmp_path) in line


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConvaryError("what\nis  wrong"), 2, "what is wrong"),
        (OSError(28, "No space left on device", "runs/x"), 2, "No space left on device: runs/x"),
        (PermissionError(13, "Permission denied", "/locked"), 2, "Permission denied: /locked"),
        (ModuleNotFoundError("No module named 'tyro'", name="tyro"), 2, "tyro, which is not installed"),
        (
            ModuleNotFoundError("No module named 'rich.x'", name="rich.x"),
            2,
            "needs rich.x, which is not installed; run pip install ",
        ),
    ],
)
def test_what_goes_wrong_inside_is_one_line(run, monkeypatch, error, code, message):
    def fails(argv):
        raise error

    monkeypatch.setattr("convary._cli.explain.run", fails)
    found, _, err = run("explain")
    assert found == code
    assert message in one_line(err)


def test_more_images_at_a_time_than_there_are(run, images, tmp_path):
    words = f"--data folder:{images} --image-size 16 --model mobilenet_v2_tiny --epochs 1 --batch-size 100000000"
    flags = "--methods static --measure-seconds 0.01 --threads 1 --cpu"
    assert run("compare", *words.split(), *flags.split(), "--out", tmp_path / "out")[0] == 0


def test_stages_are_shown_in_a_terminal_only():
    from rich.console import Console

    from convary._cli.console import stages

    for terminal in (True, False):
        out = io.StringIO()
        with stages(Console(file=out, force_terminal=terminal, width=80)) as tell:
            tell("writing [model].pt")
            time.sleep(0.2 * terminal)
        assert ("writing [model].pt" in out.getvalue()) == terminal


def test_a_bug_keeps_its_traceback(run, monkeypatch):
    def fails(argv):
        raise RuntimeError("a bug")

    monkeypatch.setattr("convary._cli.explain.run", fails)
    with pytest.raises(RuntimeError, match="a bug"):
        run("explain")


def test_missing_extras_name_what_to_install(tmp_path):
    (tmp_path / "tyro.py").write_text("raise ModuleNotFoundError(\"No module named 'tyro'\", name='tyro')\n")
    environment = _environment() | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{SOURCE}"}
    done = subprocess.run(_command("explain"), env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert one_line(done.stderr).startswith("convary: error: needs tyro, which is not installed; run pip install ")


def test_advice_names_packages_that_an_index_has(monkeypatch):
    """Those that are missing, of the core too, and never convary."""
    requirements = ["torch>=2.6", "rich>=13", 'timm>=1.0; extra == "vision"', 'a.b[x]<2; extra == "train"',
                    'convary[train,vision]; extra == "all"', 'c; sys_platform == "x" and extra == "dev"']  # fmt: skip
    monkeypatch.setattr("importlib.metadata.requires", lambda name: requirements)
    found = [{"Name": "torch"}]
    monkeypatch.setattr(
        "importlib.metadata.distributions", lambda: [SimpleNamespace(metadata=metadata) for metadata in found]
    )
    assert command("all") == "pip install rich a.b timm"
    found += [{"Name": "Rich"}, {"Name": "A_B"}]
    assert command("all") == "pip install timm"
    found += [{"Name": "timm"}]
    assert command("vision") == "pip install timm"  # it is broken, then

    def nothing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.requires", nothing)
    assert command("all") == 'pip install ".[all]" in a checkout of convary'


@pytest.mark.slow
def test_the_core_alone_explains_and_plans():
    """As after ``pip install .``: none of the packages that only extras bring can be imported."""
    extras = ("timm", "accelerate", "torchmetrics", "matplotlib", "jinja2", "onnx", "safetensors", "sklearn")
    code = f"""import sys
from importlib import machinery, util
found = util.find_spec
util.find_spec = lambda name, package=None: None if name.partition('.')[0] in {extras!r} else found(name, package)
sys.modules.update(dict.fromkeys({extras!r}))
from convary.cli import main
plan = ['plan', '--method', 'odconv', '--model']
print(main(['explain']), *[main([*plan, name]) for name in ('torchvision:resnet18', 'resnet20', 'timm:resnet18')])
"""
    done = subprocess.run([sys.executable, "-c", code], env=_environment(), capture_output=True, text=True)
    assert done.stdout.endswith("0 0 0 2\n") and "> " in done.stdout
    assert "needs timm, which is not installed; run pip install " in done.stderr.splitlines()[-1]


def test_interrupt_is_130(run, monkeypatch):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr("convary._cli.explain.run", interrupted)
    code, _, err = run("explain")
    assert code == 130
    assert "interrupted" in err


@pytest.mark.parametrize("words", ["--help", "data"])
def test_a_closed_pipe_is_no_error(words):
    """What is printed, and what rich writes; neither waits for torch."""
    words = " ".join(_command(words))
    done = subprocess.run(f"{words} | true; exit ${{PIPESTATUS[0]}}", env=_environment(), capture_output=True,
                          text=True, shell=True, executable="/bin/bash")  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_explain_prints_a_row_for_each_strategy(run):
    code, out, _ = run("explain", "--batch", 2, "--in-channels", 8, "--out-channels", 8, "--size", 12, "--training")
    assert code == 0
    assert all(name in out for name in ("grouped", "loop", "outputs", "bmm", "chosen", "forward and backward"))
    assert "S=(12,)" in out


def test_explain_shows_the_choice_first(run):
    rows = run("explain", "--op", "sample_conv", "--batch", 2)[1].splitlines()[2:]
    assert rows[0].startswith("> ") and not any(row.startswith("> ") for row in rows[1:])


def test_explain_of_one_kernel_per_sample(run):
    code, out, _ = run("explain", "--op", "sample_conv", "--groups", 64)
    assert code == 0
    assert "sample_conv" in out


def test_plan_prints_every_layer(run):
    code, out, _ = run(
        "plan", "--model", "resnet20", "--method", "odconv", "--where", "name('layer3.*')", "--experts", 2
    )
    assert code == 0
    assert "layer3.* (5 layers)" in out and "layer3.0.conv1" in out
    assert "6 of 20 layers become ODConv (ODConv(experts=2" in out


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("all & ~first", "(all() & ~first())"),
        ("all() | classifier", "(all() | classifier())"),
        ("kernel_size((3, 1))", "kernel_size((3, 1))"),
        ("name('a.*', 'b') & type(Conv2d)", "(name('a.*', 'b') & type(Conv2d))"),
        ("paper", "paper(ODConv)"),
    ],
)
def test_selectors_read_as_in_python(text, label):
    assert repr(selector(text, convary.ODConv())) == label


@pytest.mark.parametrize(
    "text", ["", "all &", "all + first", "all.first", "__import__('os')", "kernel_size()", "name(x)", "where=1", "1"]
)
def test_selectors_run_no_python(text):
    with pytest.raises(ConfigError, match="--where"):
        selector(text, convary.ODConv())


def test_all_public_selectors_can_be_written():
    public = {name for name, value in vars(convary.where).items() if callable(value) and name in convary.where.__dict__}
    assert set(SELECTORS) <= public
    assert {"all", "first", "last", "kernel_size", "depthwise", "name", "type", "paper"} <= set(SELECTORS)


def test_data_lists_the_sets(run, tmp_path):
    code, out, _ = run("data", "--root", tmp_path)
    assert code == 0
    assert re.search(r"fashion-mnist-mini +yes", out)
    assert re.search(r"cifar100 +no", out)
    assert "convary data NAME" in out
    for name in ("train", "test", "meta"):
        (tmp_path / "cifar-100-python").mkdir(exist_ok=True)
        (tmp_path / "cifar-100-python" / name).touch()
    assert re.search(r"cifar100 +yes", run("data", "--root", tmp_path)[1])


def test_data_describes_a_set_that_is_here(run):
    code, out, _ = run("data", "fashion-mnist-mini")
    assert code == 0
    assert "10 classes" in out
    assert "MIT" in out


def test_compare_writes_results_and_report_and_prints_the_table(finished):
    out, code, said = finished
    assert code == 0
    results = json.loads((out / "results.json").read_text())
    assert [method["name"] for method in results["methods"]] == ["static", "dyconv"]
    assert "std needs at least 2 seeds" in (out / "report.html").read_text()
    assert re.search(r"^DyConv +\d+\.\d\d +[+−]\d", said, re.MULTILINE)
    assert str(out / "report.html") in said
    assert "DyConv, seed 0: epoch 1/1" in said


def test_a_finished_comparison_is_only_shown_again(run, finished, tiny):
    out = finished[0]
    before = (out / "results.json").read_bytes()
    code, said, _ = run("compare", *tiny, "--out", out)
    assert code == 0
    assert "DyConv" in said
    assert "epoch" not in said
    assert (out / "results.json").read_bytes() == before


def test_a_folder_of_another_run_is_refused(run, finished, tiny):
    out = finished[0]
    code, _, err = run("compare", *tiny, "--lr", 0.02, "--out", out)
    assert code == 2
    assert "is the folder of another run: lr 0.01 there and 0.02 here" in one_line(err)


def test_eval_prints_top1_and_classes(run, finished):
    out = finished[0]
    top1 = json.loads((out / "results.json").read_text())["methods"][1]["top1"]["mean"]
    code, said, _ = run("eval", out / "dyconv" / "seed-0" / "checkpoint.pt")
    assert code == 0
    assert f"top-1 {top1:.2f} %" in said
    assert "bright" in said
    assert "dark" in said


@pytest.mark.parametrize("name", ["static", "dyconv"])
def test_restore_reads_what_compare_trained(finished, name, images):
    """By a path as text too; it gives the accuracy that was measured."""
    path = finished[0] / name / "seed-0" / "checkpoint.pt"
    model, data = models.restore(str(path)), load_data(f"folder:{images}", image_size=16)
    assert not model.training and any(isinstance(m, DynamicLayer) for m in model.modules()) == (name == "dyconv")
    results = json.loads((finished[0] / "results.json").read_text())["methods"]
    with torch.no_grad():
        scores = model(data.normalise(data.test.batch(torch.arange(len(data.test.labels)))))
    top1 = 100 * (scores.argmax(1) == data.test.labels).float().mean()
    assert top1 == pytest.approx(next(method["top1"]["mean"] for method in results if method["name"] == name))
    for again in (load_model(str(path)), load_model(path)):
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_few_test_images_are_called_few(run, finished):
    out, _, compared = finished
    few = json.loads((out / "results.json").read_text())["data"]["test"]
    _, evaluated, _ = run("eval", out / "static" / "seed-0" / "checkpoint.pt")
    for words in (evaluated, compared):
        said = f"Only {few} test images: one image is {100 / few:.2g} points, so nothing can be concluded."
        assert said in " ".join(words.split())


def test_predict_says_the_classes_of_photographs(run, finished, images):
    """Those that the network says in evaluation, whatever is given of its folder; a photograph may have any size."""
    out = finished[0]
    photos = [images / "test" / name / "1.png" for name in ("dark", "bright")]
    code, said, _ = run("predict", out / "dyconv" / "seed-0" / "checkpoint.pt", *photos, "--cpu")
    assert code == 0
    model, data = load_model(out / "dyconv" / "seed-0" / "checkpoint.pt"), load_data(f"folder:{images}", image_size=16)
    for photo, line in zip(photos, said.splitlines(), strict=True):
        with torch.no_grad():
            scores = model(data.normalise(read_image(photo, size=16)[None])).softmax(1)[0]
        best = int(scores.argmax())
        assert line.startswith(f"{photo}  {data.classes[best]} {scores[best]:.2f}, {data.classes[1 - best]} ")
    for folder in (out / "dyconv", out / "dyconv" / "seed-0"):
        assert run("predict", folder, *photos, "--cpu")[:2] == (0, said)
    code, _, err = run("predict", out, photos[0])
    assert code == 2 and "has several classifiers; give one, such as" in err and "seed-0/checkpoint.pt" in err
    code, _, err = run("predict", out / "dyconv", out / "results.json", "--cpu")
    assert code == 2 and "results.json is not a readable image" in one_line(err)


EXPORTED = {
    "any.onnx": ["--dynamic", "0"],
    "one.onnx": ["--image"],
    "two.onnx": ["--dynamic"],  # of two images at a time, and no other number
    "any.pt2": ["--dynamic", "0"],
    "two.pt2": ["--dynamic"],
}


@pytest.mark.parametrize("name", EXPORTED)
def test_predict_says_the_same_by_an_exported_file(run, finished, images, tmp_path, name):
    checkpoint = finished[0] / "dyconv" / "seed-0" / "checkpoint.pt"
    if name.endswith(".onnx"):
        pytest.importorskip("onnxruntime")
    out = tmp_path / name
    code, told, _ = run("export", checkpoint, "--out", out, "--no-run", *EXPORTED[name])
    assert code == 0 and f"it knows its 2 classes: convary predict {out} PHOTO..." in " ".join(told.split())
    photos = [images / "test" / kind / "1.png" for kind in ("dark", "bright")]
    want, got = (run("predict", file, *photos, "--cpu") for file in (checkpoint, out))
    assert got == want and got[0] == 0


def test_an_exported_file_of_other_images_says_their_size(run, finished, images, tmp_path):
    words = ("--no-run", "--image", finished[0] / "static" / "seed-0" / "checkpoint.pt")
    assert run("export", *words, "--shape", 3, 32, 32, "--out", tmp_path / "large.pt2")[0] == 0
    assert Classifier(tmp_path / "large.pt2").format.shape == (3, 32, 32)
    assert run("predict", tmp_path / "large.pt2", images / "test" / "dark" / "1.png", "--cpu")[0] == 0
    told = run("export", *words, "--shape", 3, 32, 16, "--out", tmp_path / "long.pt2")[1]
    assert "photographs are seen as squares, which --shape is not" in " ".join(told.split())
    with pytest.raises(convary.CheckpointError, match="does not say its classes"):
        Classifier(tmp_path / "long.pt2")


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_predict_of_a_file_that_says_no_classes(run, images, tmp_path, suffix):
    photo, net = images / "test" / "dark" / "1.png", torch.nn.Flatten()
    broken, bare, odd = (tmp_path / f"{name}.{suffix}" for name in ("broken", "bare", "odd"))
    broken.write_text("no network")
    convary.export(net, (1, 3, 4, 4), bare, dynamic=())
    convary.export(net, (1, 3, 4, 4), odd, dynamic=(), notes={KEY: "{}"})
    wanted = {
        broken: f"{broken} can't be read as .{suffix}: .*; export it again",
        bare: f"{bare} does not say its classes; export it from a checkpoint of convary compare, or with convary",
        odd: "'{}' does not say how photographs are read; export the file again",
    }
    for file, message in wanted.items():
        code, told, err = run("predict", file, photo, "--cpu")
        assert (code, told) == (2, "") and re.search(message, one_line(err))


def test_few_photos_to_test_on_are_told_with_the_way_to_more(run, tmp_path):
    for part, count in (("train", 4), ("test", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / f"{i}.png")
    code, said, _ = run("data", f"folder:{tmp_path}")
    assert code == 0 and "8 training and 4 test images" in said
    assert "One of 4 test images is 25 points of accuracy: keep more for testing. Folders train/CLASS" in said


def test_eval_of_a_truncated_checkpoint(run, finished, tmp_path):
    whole = (finished[0] / "static" / "seed-0" / "checkpoint.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    code, _, err = run("eval", tmp_path / "cut.pt")
    assert code == 2
    assert f"{tmp_path}/cut.pt is truncated" in one_line(err)


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_resume(tiny, tmp_path):
    out = tmp_path / "out"
    words = ["compare", *tiny, "--epochs", "500", "--out", out]
    started = subprocess.Popen(
        _command(*words), env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 60
    while not (out / "static").exists() and time.monotonic() < until:
        time.sleep(0.1)
    started.send_signal(signal.SIGINT)
    _, err = started.communicate(timeout=60)
    assert started.returncode == 130
    assert "Traceback" not in err
    assert f"saved in {out}" in err
    command = shlex.split(err.partition("Resume with: ")[2])
    assert command[:2] == ["convary", "compare"]
    given = parse(CompareConfig, [str(word) for word in words[1:]], "given")
    assert parse(CompareConfig, command[2:], "resumed") == given
    assert (out / "static" / "seed-0" / "checkpoint.pt").exists()


def test_the_table_has_a_spread_for_several_seeds():
    from rich.console import Console

    ratio = {"ms": 1.0, "ratio": 1.0, "low": 1.0, "high": 1.0}
    method = {
        "name": "static",
        "title": "static",
        "citation": None,
        "layers": 0,
        "params": 10,
        "macs": {"convolution": 10, "routing": 0, "assembly": 0, "other": 0},
        "latency": [{"batch": 1, **ratio}],
        "step": {"batch": 2, **ratio},
        "top1": {"mean": 81.234, "std": 0.567},
    }
    console = Console(width=100)
    with console.capture() as said:
        console.print(compare_command.results_table({"run": {"seeds": [0, 1]}, "methods": [method]}))
    assert "81.23 ± 0.57" in said.get()
    assert "Mean ± std over 2 seeds" in said.get()


@pytest.fixture
def weights(tmp_path):
    """A checkpoint of a small network of torchvision, as training would leave it."""
    torch.manual_seed(0)
    model = models.create("torchvision:squeezenet1_1")
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "trained.pt")
    return tmp_path / "trained.pt", model.eval()


def test_convert_writes_a_file_that_is_rebuilt_from_it_alone(run, weights, tmp_path):
    file, static = weights
    out = tmp_path / "new" / "model.pt"
    words = ("--model", "torchvision:squeezenet1_1", "--method", "odconv", "--experts", 2, "--where", "kernel_size(3)")
    code, told, error = run("convert", *words, "--weights", file, "--out", out)
    assert (code, error) == (0, "")
    assert "9 of 26 layers become ODConv" in told and f"wrote {out}" in " ".join(told.split())
    dynamic = models.restore(out)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert (dynamic(x) - static(x)).abs().max() <= 1e-4 * static(x).abs().max()
    assert sum(isinstance(m, convary.ODConv2d) for m in dynamic.modules()) == 9
    content = torch.load(out, weights_only=True)
    dynamic.load_state_dict(content["state_dict"])
    assert (content["network"], len(content["recipe"]["layers"])) == ("torchvision:squeezenet1_1", 9)


def test_defaults_of_convert_and_export_are_those_of_the_functions():
    for flags, function in ((Convert, convary.convert), (Export, convary.export)):
        known = inspect.signature(function).parameters.values()
        options = {option.name: option.default for option in known if option.kind is option.KEYWORD_ONLY}
        given = {field.name: field.default for field in dataclasses.fields(flags) if field.name in options}
        assert given and given.items() <= options.items()


def test_convert_takes_any_network_of_timm(run, tmp_path):
    words = ("--model", "timm:test_efficientnet", "--method", "condconv", "--router", "block", "--where", "blocks")
    code, told, _ = run("convert", *words, "--weights", "random", "--out", tmp_path / "model.pt")
    assert code == 0 and "become CondConv" in told
    assert any(hasattr(m, "router") for m in models.restore(tmp_path / "model.pt").modules())


def no_network(*args, **options):
    raise OSError("Name or service not known")


BAD_CONVERSIONS = {
    "torchvision:squeezenet1_2": "did you mean 'squeezenet1_1'?",
    "timm:resnet81": "timm has no model 'resnet81'; did you mean",
    "resnet20": "want torchvision:NAME or timm:NAME",
    "torchvision:squeezenet1_1 --weights none.pt": "there is no file none.pt",
    "torchvision:squeezenet1_0 --weights TRAINED": r"features\.6\..* is missing|is left over|in the checkpoint but",
    "torchvision:squeezenet1_1": r"can't be downloaded: Name or service not known; .*--weights FILE",
    "torchvision:squeezenet1_1 --weights random --where linear": "nothing to convert",
}


@pytest.mark.parametrize("words", BAD_CONVERSIONS)
def test_convert_says_what_is_wrong_and_writes_nothing(run, weights, tmp_path, monkeypatch, words):
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    out = tmp_path / "model.pt"
    argv = words.replace("TRAINED", str(weights[0])).split()
    code, told, error = run("convert", "--model", *argv, "--method", "odconv", "--out", out)
    assert code == 2 and "wrote" not in told and error.count("\n") == 1
    assert re.search(BAD_CONVERSIONS[words], error)
    assert not out.exists()


def test_what_restore_refuses(run, tmp_path):
    good = tmp_path / "model.pt"
    words = ("--model", "timm:test_byobnet", "--method", "dyconv", "--weights", "random", "--out", good)
    assert run("convert", *words)[0] == 0
    content = torch.load(good, weights_only=True)
    made = content["recipe"]
    torch.save(content | {"recipe": made | {"version": 9}}, tmp_path / "newer.pt")
    torch.save({"recipe": made, "state_dict": content["state_dict"]}, tmp_path / "nameless.pt")
    compared = {"format": "convary checkpoint", "version": 2, "recipe": made, "model": content["state_dict"]}
    torch.save(compared, tmp_path / "compared.pt")
    torch.save({"format": "convary system checkpoint", "model": content["state_dict"]}, tmp_path / "system.pt")
    torch.save({"a": 1}, tmp_path / "foreign.pt")
    (tmp_path / "half.pt").write_bytes(good.read_bytes()[:1000])
    torch.save(content | {"recipe": made | {"layers": dict(list(made["layers"].items())[:-1])}}, tmp_path / "unfit.pt")
    refused = {
        "newer.pt": "the recipe has version 9",
        "nameless.pt": "does not say which network.*convary.load",
        "compared.pt": "has version 2, this convary reads 1",
        "system.pt": "convary train wrote it: draw with convary predict",
        "foreign.pt": "holds no recipe.*write it with convary.save",
        "half.pt": "truncated",
        "none.pt": "there is no file",
        "unfit.pt": "does not fit ByobNet: .* is left over",
    }
    for name, message in refused.items():
        with pytest.raises((convary.CheckpointError, convary.ConfigError), match=message):
            models.restore(tmp_path / name)


def told_change(told: str) -> float:
    return float(re.search(r"scores within (\S+) of the network's", " ".join(told.split()))[1])


@pytest.mark.slow
def test_export_of_what_convert_and_compare_wrote(run, finished, tmp_path):
    words = ("--model", "timm:test_byobnet", "--method", "odconv", "--experts", 2, "--weights", "random")
    assert run("convert", *words, "--where", "last", "--out", tmp_path / "model.pt")[0] == 0
    checkpoint = finished[0] / "dyconv" / "seed-0" / "checkpoint.pt"
    sources = {
        "free.pt2": (tmp_path / "model.pt", "--shape", 3, 64, 64, "--dynamic", 0),
        "fixed.pt2": (checkpoint, "--strategy", "outputs", "--dynamic"),
    }
    for name, source in sources.items():
        code, told, error = run("export", *source, "--out", tmp_path / name)
        assert (code, error) == (0, "")
        told = " ".join(told.split())
        assert f"wrote {tmp_path / name} (" in told and "of the static network's file" in told
        form = {"free.pt2": "bmm (mixed_conv): mixed kernels", "fixed.pt2": "outputs (mixed_conv): a convolution per"}
        assert form[name] in told and told_change(told) < 1e-4
        batch = {"free.pt2": 1, "fixed.pt2": 2}[name]
        assert f"run by torch on {batch} image" in told
    assert torch.export.load(tmp_path / "free.pt2").module()(torch.randn(5, 3, 64, 64)).shape[0] == 5


@pytest.mark.slow
def test_export_to_onnx_is_run_by_onnxruntime(run, finished, tmp_path):
    pytest.importorskip("onnxruntime")
    checkpoint = finished[0] / "dyconv" / "seed-0" / "checkpoint.pt"
    code, told, _ = run("export", checkpoint, "--out", tmp_path / "model.onnx", "--dynamic", 0)
    assert code == 0 and "run by onnxruntime on 1 image" in told and told_change(told) < 1e-3
    words = ("--image", "--runtime", "onnxruntime", "--no-run", "--out", tmp_path / "one.onnx")
    code, told, _ = run("export", checkpoint, *words)
    assert code == 0 and "nodes" in told and "grouped (mixed_conv)" in told and "run by" not in told


def test_export_tells_of_a_hot_router(run, tmp_path):
    words = ("--model", "timm:test_byobnet", "--method", "kernelwarehouse", "--where", "last", "--weights", "random")
    code, told, error = run("export", *words, "--shape", 3, 64, 64, "--dynamic", 0, "--out", tmp_path / "model.pt2")
    assert (code, error) == (0, "")
    assert "note: exporting routers at temperature 1, above the final 0" in " ".join(told.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "wants FILE or --model, and not both"),
        ("{tmp}/none.pt --model timm:test_byobnet", "wants FILE or --model, and not both"),
        ("{tmp}/none.pt --method odconv", "none.pt says itself what it is"),
        ("{tmp}/none.pt", "there is no file {tmp}/none.pt"),
        ("{tmp}/text.pt", "text.pt is truncated or no checkpoint"),
        (
            "--model timm:test_byobnet --weights random --dynamic 4",
            "--dynamic takes axes of the input, 0 to 3; got (4,)",
        ),
        ("--model timm:test_byobnt", "did you mean"),
        ("--model timm:test_byobnet --weights random --method odconf", "did you mean 'odconv'?"),
        ("--model timm:test_byobnet --weights random --strategy loop", "invalid choice 'loop'"),
        ("--model timm:test_byobnet --weights random --image --dynamic 0", "--image is for one image of one shape"),
        ("--model timm:test_byobnet --weights random --runtime onnxruntime", "is for .onnx files; got"),
        ("--model timm:test_byobnet --weights random --out {tmp}/model.pb", "must end in .onnx (ONNX) or .pt2"),
        (
            "--model timm:test_byobnet --weights random --out {tmp}/no/model.pt2 --shape 3 64 64 --dynamic 0",
            "no folder",
        ),
    ],
)
def test_export_says_what_is_wrong_and_writes_nothing(run, tmp_path, words, message):
    (tmp_path / "text.pt").write_text("text")
    argv = words.format(tmp=tmp_path).split()
    code, told, error = run("export", *argv, *([] if "--out" in argv else ["--out", tmp_path / "model.pt2"]))
    assert (code, told) == (2, "")
    assert message.format(tmp=tmp_path) in one_line(error)
    assert not list(tmp_path.glob("model.*"))


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


def test_plan_counts_the_classes_that_the_authors_chose(run):
    code, out, _ = run("plan", "--model", "torchvision:resnet18", "--method", "odconv")
    assert code == 0 and "11,689,512 -> 44,901,640" in out
    assert (
        "11,181,642 -> 44,393,770" in run(*"plan --model torchvision:resnet18 --method odconv --classes 10".split())[1]
    )
