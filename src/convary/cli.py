# SPDX-License-Identifier: Apache-2.0
"""The ``convary`` program: finds the command, runs it, and turns what goes wrong into one line and an exit code.

Exit codes: 0 done, 2 bad arguments or data, 130 interrupted. Only the command that is asked for is imported.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import warnings
from collections.abc import Sequence

from convary.errors import ConfigError, ConvaryError, nearest
from convary.extras import command

COMMANDS = {
    "compare": ("convary._cli.compare", "Train a network and its dynamic versions alike; write tables and a report."),
    "plan": ("convary._cli.plan", "Show which layers of a model a method would make dynamic, and at what cost."),
    "convert": ("convary._cli.convert", "Make a trained network of timm or torchvision dynamic; write it to a file."),
    "export": ("convary._cli.export", "Write a dynamic network as ONNX or a torch program, and check the file."),
    "explain": ("convary._cli.explain", "Show which strategy would run a dynamic convolution, and why."),
    "reproduce": ("convary._cli.reproduce", "Print published tables beside ours; train their rows."),
    "bench": ("convary._cli.bench", "Time dynamic convolutions and networks against static ones; peak memory."),
    "train": (
        "convary._cli.train",
        "Train a published system: DFN, DMNet, HDFNet, CondInst, or a detector on a dynamic backbone.",
    ),
    "predict": (
        "convary._cli.predict",
        "Draw what a system of train makes of your files, or say the classes of photographs.",
    ),
    "eval": ("convary._cli.evaluate", "Evaluate a checkpoint of compare: top-1, and per class."),
    "data": ("convary._cli.data", "List the data sets and whether they are here, or fetch one."),
}
DONE, FAILED, INTERRUPTED = 0, 2, 130
_FORMAT = warnings.formatwarning
# What torch says in the processes of a run whose first one, say, has ended; it has no class for it.
_ALONE = re.compile("closed by peer|reset by peer|[Rr]emote process exited|ncclRemoteError")
# What torch says of sizes that no machine holds; it has no class for most of them.
_TOO_LARGE = re.compile("allocate memory|bad_alloc|out of memory|[Oo]verflow|negative dimension", re.ASCII)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; by default the process's.

    Returns:
        The exit code.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    before, warnings.formatwarning = warnings.formatwarning, _note
    try:
        code = _dispatch(argv)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of our output has seen enough, as in `convary plan | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except KeyboardInterrupt as interrupt:
        print(f"\nconvary: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        return INTERRUPTED
    except ModuleNotFoundError as error:
        if (error.name or "convary").partition(".")[0] == "convary":
            raise
        return _complain(f"needs {error.name}, which is not installed; run {command('all')}")
    except ConvaryError as error:
        return _complain(str(error))
    except (RuntimeError, MemoryError, OverflowError, ValueError, TypeError) as error:
        if "RANK" in os.environ and _ALONE.search(str(error)):
            return _complain("another process of this run has ended; what it said is the reason")
        if not _TOO_LARGE.search(str(error)) and not isinstance(error, (MemoryError, OverflowError)):
            raise
        return _complain(_too_large(str(error)))
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        return _complain(f"{error.strerror or error}{place}")
    finally:
        warnings.formatwarning = before


def _dispatch(argv: list[str]) -> int:
    name, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if name in ("-h", "--help", "help"):
        print(_help())
        return DONE
    if name == "--version":
        print(f"convary {_version()}")
        return DONE
    if name not in COMMANDS:
        kind = "flag" if name.startswith("-") else "command"
        raise ConfigError(f"there is no {kind} {name!r}; choose from {', '.join(COMMANDS)}{nearest(name, COMMANDS)}")
    return importlib.import_module(COMMANDS[name][0]).run(rest)


def _note(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """A warning of ours in one line; others with their place."""
    if category.__module__.partition(".")[0] == "convary":
        return f"convary: note: {message}\n"
    return _FORMAT(message, category, filename, lineno, line)


def _too_large(said: str) -> str:
    asked = re.search(r"allocate (\d+) bytes", said)
    reason = f"{int(asked[1]) / 1e9:,.0f} GB of memory were asked for" if asked else said.partition("\n")[0]
    return f"these sizes are beyond this machine: {reason or 'out of memory'}; give other numbers"


def _complain(message: str) -> int:
    print(f"convary: error: {' '.join(message.split())}", file=sys.stderr)
    return FAILED


def _version() -> str:
    from convary import __version__

    return __version__


def _help() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {what}" for name, (_, what) in COMMANDS.items())
    return (
        "usage: convary COMMAND [FLAGS]\n\n"
        "Dynamic convolutions: compare them, and put them into your own network.\n\n"
        f"commands:\n{commands}\n\n"
        "convary COMMAND --help shows a command's flags and their defaults; convary --version the version.\n"
        "Exit codes: 0 done, 2 bad arguments or data, 130 interrupted."
    )


if __name__ == "__main__":
    sys.exit(main())
