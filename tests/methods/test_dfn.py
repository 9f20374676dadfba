"""DFN's layers and its network against what the released code computes."""

import pytest
import torch
from torch import nn

from convary.methods.dfn import DFNConv2d, DFNLocalFilter2d, filter_flow, local_filter
from tests.test_golden import Case, cases


@pytest.mark.parametrize("name", cases("dfn_local_*"))
def test_local_filtering_agrees_with_the_released_code(name):
    case = Case(name)
    x, logits = (case.inputs[key].requires_grad_() for key in ("image", "logits"))
    filters = logits.softmax(1) if case.kwargs["filters"].startswith("softmax") else logits
    if "filters" in case.expected:
        case.close("filters", filters)
    *kernel_size, _ = case.kwargs["filter_size"]
    out = local_filter(x, filters, kernel_size=kernel_size, grouping=case.kwargs["grouping"])
    case.close("out", out)
    case.backward(out)
    case.check_gradients({"image": x.grad, "logits": logits.grad})
