# SPDX-License-Identifier: Apache-2.0
"""One torch thread per test process, of which pytest-xdist runs several; compiled code of this run only."""

import os
import shutil
import tempfile

import hypothesis
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("convary", derandomize=True, deadline=None)
hypothesis.settings.load_profile("convary")


def pytest_configure(config) -> None:
    """Give Inductor a cache of its own: it finds code by the names of operators and not by their schemas.

    Code that an earlier version of convary left in the usual cache would call today's operators in yesterday's way.
    """
    if not hasattr(config, "workerinput"):  # workers of pytest-xdist inherit the folder of the process that starts them
        folder = tempfile.mkdtemp(prefix="convary-inductor-")
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
