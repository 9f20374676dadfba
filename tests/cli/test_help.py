# SPDX-License-Identifier: Apache-2.0
"""Help of every command with real defaults, and examples that can be parsed, before torch is imported."""

from __future__ import annotations

import dataclasses
import importlib
import re
import shlex
import subprocess
import sys

import pytest

import convary
from convary import METHODS, cli
from convary._cli import options
from convary._cli.bench import KINDS
from convary._cli.export import Export
from convary._cli.help import EXAMPLES
from convary._cli.parse import parse
from convary.systems import SYSTEMS
from convary.train import CompareConfig
from tests.cli.calls import environment


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
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
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
        name = field.name.replace("_", "-")
        flag = rf"  --{name}\b"
        said = " ".join(re.search(rf"{flag}.*?(?=\n  --|\n\n)", out, re.DOTALL)[0].split())
        if isinstance(field.default, bool):
            assert (f"--no-{name}" in said) == said.endswith("(default: on)") == field.default
        elif isinstance(field.default, int | float | str):
            assert said.endswith(f"(default: {field.default})")
        elif field.default in (None, ()):
            assert "default:" not in said


def test_help_of_compare_begins_with_what_a_newcomer_needs(run):
    _, out, _ = run("compare", "--help")
    flags = re.findall(r"^  --([\w-]+)", out, re.MULTILINE)
    assert flags[:9] == ["data", "model", "weights", "methods", "where", "epochs", "seeds", "lr", "out"]
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
