# SPDX-License-Identifier: Apache-2.0
"""What goes wrong is one line and an exit code; what is missing names what to install."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest

from convary.errors import ConvaryError
from convary.extras import command
from tests.cli.calls import SOURCE, command_line, environment, one_line

WRONG = [
    ("compaer", "did you mean 'compare'?"),
    ("--versoin", "there is no flag '--versoin'"),
    ("compare --epoch 3", "no flag --epoch; did you mean '--epochs'?"),
    ("compare --epochs x", "--epochs wants a whole number; got 'x'"),
    ("compare --warmup x", "--warmup wants a number; got 'x'"),
    ("compare --lr 0.1 fast", "--lr wants numbers; got '0.1 fast'"),
    ("compare --epochs 0", "epochs must be at least 1; got 0"),
    ("compare --methods static odcnov", "did you mean 'odconv'?"),
    ("compare --init papr", "invalid choice 'papr'"),
    ("compare --data fashion-mnist-mni --out {tmp}/o", "did you mean 'fashion-mnist-mini'?"),
    ("compare --model resnet2 --out {tmp}/o", "did you mean 'resnet20'?"),
    ("compare --data folder:{tmp} --out {tmp}/o", "{tmp} has 0 class folders"),
    ("compare --methods odconv:expert=2", "did you mean 'experts'?; its options: convary plan --method odconv --help"),
    ("compare --methods se:reductoin=2", "did you mean 'reduction'?; see convary compare --help"),
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
    ("eval {tmp}/net.onnx", "net.onnx is an exported file, which convary predict reads; evaluate the checkpoint"),
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


def test_where_another_process_has_ended_this_one_says_so(run, monkeypatch):
    def fails(argv):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:39134.")

    monkeypatch.setattr("convary._cli.explain.run", fails)
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(RuntimeError, match="closed by peer"):
        run("explain")
    monkeypatch.setenv("RANK", "1")
    found, _, err = run("explain")
    assert found == 2 and "another process of this run has ended" in one_line(err)


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
    changed = environment() | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{SOURCE}"}
    done = subprocess.run(command_line("explain"), env=changed, capture_output=True, text=True)
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
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
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
    words = " ".join(command_line(words))
    done = subprocess.run(f"{words} | true; exit ${{PIPESTATUS[0]}}", env=environment(), capture_output=True,
                          text=True, shell=True, executable="/bin/bash")  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_our_warnings_are_one_line_without_a_place():
    words = """
import warnings
from convary import cli, errors
warnings.simplefilter('always')
def warn(argv):
    warnings.warn('left out', errors.TemperatureWarning)
    warnings.warn('theirs', UserWarning)
cli._dispatch = warn
cli.main([])
warn([])
"""
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True)
    ours, theirs, *after = done.stderr.splitlines()
    assert ours == "convary: note: left out" and theirs == "<string>:7: UserWarning: theirs"
    assert "TemperatureWarning: left out" in after[0]  # as it was before
