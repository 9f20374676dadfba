# SPDX-License-Identifier: Apache-2.0
"""One torch thread per test process, of which pytest-xdist runs several; compiled code and costs of this run only."""

import gc
import os
import shutil
import tempfile

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # fake tensors ask time and again, and each time the driver was looked for
hypothesis.settings.register_profile("convary", derandomize=True, deadline=None)
hypothesis.settings.load_profile("convary")


def pytest_addoption(parser) -> None:
    """What ``tests/test_device.py`` runs on, and in."""
    parser.addoption("--device", default="cpu", help="where the contract's values are checked: cpu, cuda, mps, ...")
    parser.addoption("--dtype", default="float32", help="in what they are checked: float64, float32, bfloat16, float16")


def pytest_configure(config) -> None:
    """Give Inductor and convary caches of their own.

    Inductor finds code by the names of operators and not by their schemas: code that an earlier version of convary left
    in the usual cache would call today's operators in yesterday's way. Costs measured on this machine would decide what
    tests of choices see.
    """
    if not hasattr(config, "workerinput"):  # workers of pytest-xdist inherit the folder of the process that starts them
        folder = tempfile.mkdtemp(prefix="convary-tests-")
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(folder, "inductor")
        os.environ["CONVARY_CACHE"] = os.path.join(folder, "convary")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest come first: whichever worker is free takes from the end."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_collection_finish() -> None:
    """What is there before the first test stays: no collection of garbage need look through torch and all tests.

    accelerate collects after every training, and torch.export makes many short-lived objects.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Nor through what a module's tests imported: in the end that is as much again, and 0.3 s for each training."""
    if nextitem is None or nextitem.fspath != item.fspath:
        gc.collect()
        gc.freeze()
