"""Loss and measures of salient objects, against the numbers of HDFNet's authors."""

import pytest
import torch

from convary.systems.hdfnet_loss import edge_loss, hybrid_enhanced_losses, region_loss
from convary.systems.saliency_scores import SaliencyScores
from tests.golden.case import Case


def test_loss_agrees_with_the_authors():
    case = Case("hdfnet_hel_loss")
    saliency, mask = case.inputs["pred"].double().requires_grad_(), case.inputs["mask"].double()
    edge, region = edge_loss(saliency, mask), region_loss(saliency, mask)
    case.close("out.edge", edge)
    case.close("out.region", region)
    loss = (edge + region).mean()
    case.close("out", loss)
    loss.backward()
    case.close("grad.pred", saliency.grad)
    parts = hybrid_enhanced_losses(torch.logit(saliency.detach()), mask)
    want = torch.stack([case.expected["out.bce_mean"], edge.mean().detach(), region.mean().detach()])
    torch.testing.assert_close(torch.stack(list(parts.values())).double(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_loss_without_objects_or_without_background(value):
    mask = torch.full((2, 1, 8, 9), value)
    right, wrong = (hybrid_enhanced_losses(sign * (mask - 0.5) * 40, mask) for sign in (1, -1))
    assert all(part.isfinite() for part in (*right.values(), *wrong.values()))
    assert sum(right.values()) < 1e-3 < 1 < sum(wrong.values())


def test_scores_agree_with_the_authors():
    case = Case("hdfnet_metrics")
    scores = SaliencyScores()
    for i in range(2):
        scores.compare(case.inputs[f"pred{i}"], case.inputs[f"gt{i}"] > 0.5)
    got = scores.result()
    names = {
        "MaxF": "max_f",
        "MeanF": "mean_f",
        "WFM": "weighted_f",
        "MAE": "mae",
        "SM": "s_measure",
        "EM": "e_measure",
    }
    for theirs, ours in names.items():
        tolerance = 3e-3 if ours == "s_measure" else 1e-6  # PySODMetrics' S-measure is nearer to the original one
        assert got[ours] == pytest.approx(case.expected[f"out.{theirs}"].item(), abs=tolerance), ours


def test_a_prediction_is_brought_to_the_mask():
    mask = torch.zeros(12, 20, dtype=torch.bool)
    mask[4:8, 5:15] = True
    exact = mask[::4, ::5].float() * 0.4 + 0.3  # another size, and not from 0 to 1
    scores = SaliencyScores()
    scores.add(exact, mask)
    result = scores.result()
    assert result["mae"] == 0 and result["max_f"] == pytest.approx(1) and result["s_measure"] == pytest.approx(1)
    scores.add(1 - exact, mask)
    assert scores.result()["mae"] == 0.5


def test_a_photograph_without_objects_is_scored():
    scores, empty = SaliencyScores(), torch.zeros(8, 10, dtype=torch.bool)
    scores.add(torch.zeros(8, 10), empty)
    result = scores.result()
    assert result["mae"] == 0 and result["s_measure"] == 1
    assert result["max_f"] == result["mean_f"] == result["weighted_f"] == 0
