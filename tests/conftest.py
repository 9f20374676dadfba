# SPDX-License-Identifier: Apache-2.0
"""One torch thread per test process: pytest-xdist runs several of them."""

import hypothesis
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("convary", derandomize=True, deadline=None)
hypothesis.settings.load_profile("convary")
