# SPDX-License-Identifier: Apache-2.0
"""``convary predict``: one's own files in a trained network: pictures of a system, classes of a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from convary._cli.console import link, plain_console, stages
from convary._cli.parse import parse, wants_help
from convary.errors import ConfigError, DataError, nearest
from convary.extras import require
from convary.systems import SYSTEMS

FOLDER, CHECKPOINT = "predictions", "checkpoint.pt"
LIKELIEST = 3  # classes
CLASSIFIERS = "OUT/METHOD/seed-N/checkpoint.pt of convary compare, or the .onnx or .pt2 that convary export made of it"


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Write pictures of what a system of convary train makes of your files, or say the classes of your photographs."""

    system: Annotated[Positional[str], arg(metavar="TRAINED")]
    """A system of convary train, taken from the folder runs/SYSTEM; or the folder that it was trained into; or a
    classifier: OUT/METHOD/seed-N/checkpoint.pt of convary compare, or the .onnx or .pt2 that convary export made of
    it."""
    files: Annotated[Positional[tuple[Path, ...]], arg(metavar="FILE ...")]
    """Photographs; for a classifier folders of them, too; for dfn-video and dfn-moving-mnist videos. hdfnet looks for
    the depth of NAME.jpg in NAME_depth.png beside it, or in a folder called depth beside its folder."""
    out: Path | None = None
    """Folder for the pictures, which are named as the files; by default predictions in the folder of the system."""
    cpu: bool = False
    """Stay on the CPU where there is an accelerator."""


def run(argv: Sequence[str]) -> int:
    """Parse, restore the system, write a picture of each file."""
    if not wants_help(argv):
        require("convary predict", "all", "torchvision", "accelerate", "torchmetrics", "matplotlib")
    flags = parse(Predict, argv, "convary predict")
    if (classifier := _classifier(Path(flags.system))) is not None:
        return _classify(classifier, flags)
    folder = _folder(flags.system)
    targets = _targets(flags.files, flags.out or folder / FOLDER)

    console = plain_console()
    with stages(console) as tell:
        tell("loading torch")
        import torch
        from accelerate import Accelerator

        from convary.systems.trained import restored

        tell(f"reading {folder}")
        system, model, step = restored(folder)
        device = Accelerator(cpu=flags.cpu).device
        model = model.to(device)
        if step < system.steps:
            console.print(f"trained for {step} of {system.steps} steps so far", markup=False)
        for source, target in targets.items():
            tell(f"drawing {source}")
            target.parent.mkdir(parents=True, exist_ok=True)
            with torch.no_grad():
                system.predict(model, device, source, target)
            console.print(f"picture  {link(target)}", soft_wrap=True)
    return 0


def _classifier(path: Path) -> Path | None:
    """The checkpoint of a classifier; None where the path is none of convary compare."""
    if path.is_file():
        return path
    trained = sorted(path.glob(f"*/seed-*/{CHECKPOINT}")) or sorted(path.glob(f"seed-*/{CHECKPOINT}"))
    if len(trained) > 1:
        raise ConfigError(f"{path} has several classifiers; give one, such as {', '.join(map(str, trained[:3]))}")
    if path.name.startswith("seed-") and (path / CHECKPOINT).is_file():
        return path / CHECKPOINT
    return trained[0] if trained else None


def _classify(checkpoint: Path, flags: Predict) -> int:
    """Print the likeliest classes of each photograph."""
    photos = [photo for file in flags.files for photo in _photos(file)]
    _check_files(photos)
    if flags.out is not None:
        raise ConfigError("--out is for pictures of systems; the classes that a classifier says are printed")
    console = plain_console()
    with stages(console) as tell:
        tell("loading torch")
        from accelerate import Accelerator

        from convary.train.classifier import Classifier

        tell(f"reading {checkpoint}")
        classifier = Classifier(checkpoint, Accelerator(cpu=flags.cpu).device)
        broken = []
        for photo in photos:
            try:
                best = list(classifier(photo).items())[:LIKELIEST]
            except DataError as error:  # the others are answered first
                broken.append(str(error))
                continue
            said = ", ".join(f"{name} {probability:.2f}" for name, probability in best)
            console.print(f"{photo}  {said}", markup=False, soft_wrap=True)
    if broken:
        raise DataError("; ".join(broken))
    return 0


def _photos(file: Path) -> list[Path]:
    """A photograph, or all that lie in a folder."""
    if not file.is_dir():
        return [file]
    from convary.data.folder import EXTENSIONS

    found = sorted(path for path in file.iterdir() if path.suffix.lower() in EXTENSIONS)
    if not found:
        raise DataError(
            f"the folder {file} has no images ({', '.join(sorted(EXTENSIONS))}); give one that has, or files"
        )
    return found


def _folder(system: str) -> Path:
    """Where the system was trained into."""
    folder = Path("runs") / system if system in SYSTEMS else Path(system)
    if not folder.is_dir():
        if system not in SYSTEMS and (folder.suffix or len(folder.parts) > 1):
            raise ConfigError(_missing(folder))
        hint = f"run convary train {system}" if system in SYSTEMS else f"or give a system: {', '.join(SYSTEMS)}"
        raise ConfigError(
            f"there is no folder {folder} of a trained system; give one that has a checkpoint.pt, {hint}; "
            f"or a classifier: {CLASSIFIERS}"
        )
    return folder


def _missing(path: Path) -> str:
    """That there is no such file or folder, with the nearest that is there, as many folders deep."""
    above = next((folder for folder in path.parents if folder.is_dir()), Path())
    deep = len(path.parts) - len(above.parts)
    known = [str(found) for found in above.glob("/".join(["*"] * (deep - 1) + [f"*{path.suffix}"]))]
    found = nearest(str(path), known)
    kind = "file" if path.suffix else "folder"
    return f"there is no {kind} {path}{found or f'; give {CLASSIFIERS}, or the folder of a system'}"


def _targets(files: Sequence[Path], out: Path) -> dict[Path, Path]:
    """The picture of each file."""
    _check_files(files)
    targets = {file: out / f"{file.stem}.png" for file in files}
    if len(set(targets.values())) < len(targets):
        raise ConfigError(
            "two files have the same name but for folder and ending; predict each with an --out of its own"
        )
    own = {target.resolve() for target in targets.values()} & {file.resolve() for file in files}
    if own:
        raise ConfigError(f"the picture would take the place of {own.pop()}; give another --out")
    return targets


def _check_files(files: Sequence[Path]) -> None:
    if not files:
        raise ConfigError("no file to predict; give one or more after the system")
    for file in files:
        if file.is_dir():
            raise DataError(f"{file} is a folder; give the files in it, as in {file / '*.jpg'}")
        if not file.is_file():
            raise DataError(f"there is no file {file}; give photographs, or videos for the dfn systems")
