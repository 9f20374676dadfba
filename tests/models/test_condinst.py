# SPDX-License-Identifier: Apache-2.0
"""CondInst: torchvision's FCOS and what is added; from its positions to instances; deployment."""

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.detection import fcos_resnet50_fpn
from torchvision.ops import batched_nms

import convary as cv
from convary.errors import ConfigError, DataError, ShapeError
from convary.methods.condinst import MaskHead, mask_logits
from convary.models.backbone import RandomWeightsWarning
from convary.models.condinst import BACKBONES, CondInst, Dense, positions
from convary.models.instances import Detector, best, boxes_at, enlarge, masks_at, predict, scaled, suppress
from tests.nets import onnx_session


def small(classes=3, **options):
    """A network that finds something everywhere."""
    torch.manual_seed(0)
    model = CondInst(classes, **{"backbone": "resnet18", "channels": 64, "convs": 1, "mask_channels": 8} | options)
    head = model.head["regression_head"]
    nn.init.constant_(head.bbox_reg.bias, 2.0)
    nn.init.normal_(head.controller.weight, std=0.05)
    nn.init.normal_(model.head["classification_head"].cls_logits.weight, std=0.3)
    return model.eval()


def near(one, other):
    """Equal up to float32 rounding, against the largest value."""
    return (one.float() - other.float()).abs().max() <= 1e-4 * other.float().abs().max()


@pytest.fixture(scope="module")
def model():
    return small()


def test_the_published_network_is_torchvisions_fcos_and_what_condinst_adds():
    """fcos_resnet50_fpn has 32,269,600 parameters, as its weights' record says, beside the statistics' affine ones."""
    model = CondInst(91)
    fcos = fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    loaded = model.load_state_dict(fcos.state_dict(), strict=False)
    assert not loaded.unexpected_keys
    new = {key.rpartition(".")[0] for key in loaded.missing_keys}
    assert all(key.startswith("mask_branch") or key == "head.regression_head.controller" for key in new)
    norms = sum(p.numel() for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters())
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    controller = 9 * 256 * 169 + 169
    branch = 3 * (9 * 256 * 128 + 256) + 4 * (9 * 128 * 128 + 256) + 8 * 128 + 8
    assert counts["backbone"] - norms + counts["head"] - controller == 32_269_600
    assert counts["mask_branch"] == branch


@pytest.mark.parametrize("size", [(64, 96), (65, 131), (33, 40)])
@pytest.mark.parametrize("mask_stride", [8, 4, 2])
def test_shapes_at_any_size(size, mask_stride):
    model = small(mask_stride=mask_stride)
    with torch.no_grad():
        dense = model(torch.randn(2, 3, *size))
        found = Detector(model, candidates=50, detections=7)(torch.randn(2, 3, *size))
    h, w = -(-size[0] // 8), -(-size[1] // 8)
    P = len(dense.points)
    assert P == len(dense.strides) >= h * w and dense.points[1].tolist() == [12, 4]
    assert dense.logits.shape == (2, P, 3) and dense.distances.shape == (2, P, 4) and dense.centerness.shape == (2, P)
    assert dense.params.shape == (2, P, 169) and dense.features.shape == (2, 8, h, w)
    boxes = found["boxes"]
    assert boxes.shape == (2, 7, 4) and found["scores"].shape == found["labels"].shape == (2, 7)
    assert found["masks"].shape == (2, 7, h * 8 // mask_stride, w * 8 // mask_stride)
    assert (boxes[..., 2] <= size[1]).all() and (boxes[..., 3] <= size[0]).all() and (boxes >= 0).all()


def test_a_batch_of_none(model):
    with torch.no_grad():
        found = Detector(model, candidates=50, detections=7)(torch.randn(0, 3, 64, 64))
    assert [tuple(part.shape) for part in found.values()] == [(0, 7, 4), (0, 7), (0, 7), (0, 7, 16, 16)]


def test_an_image_does_not_depend_on_its_batch(model):
    x = torch.randn(3, 3, 64, 96)
    detector = Detector(model, candidates=80, detections=9, threshold=0.001)
    with torch.no_grad():
        together, alone = detector(x), detector(x[1:2])
    assert (alone["scores"] > 0).all()
    assert all(near(together[name][1:2], value) for name, value in alone.items())


def test_regnets_too():
    dense = small(backbone="regnet_x_400mf")(torch.randn(1, 3, 64, 64))
    assert dense.features.shape == (1, 8, 8, 8)
    assert {"resnet50", "resnext50_32x4d", "wide_resnet50_2", "regnet_y_400mf"} < set(BACKBONES)


def test_positions():
    points, strides = positions([torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 1, 2)])
    assert points.tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12], [8, 8], [24, 8]]
    assert strides.tolist() == [8] * 6 + [16] * 2


def hand_made():
    """Two images of two positions and two classes."""
    return Dense(
        logits=torch.tensor([[[9.0, -9], [-9, 1]], [[-9, -9], [-9, -9]]]),
        distances=torch.tensor([[[1.0, 2, 3, 4], [50, 50, 50, 50]]]).repeat(2, 1, 1),
        centerness=torch.full((2, 2), 9.0),
        params=torch.randn(2, 2, 169),
        features=torch.randn(2, 8, 4, 4),
        points=torch.tensor([[4.0, 4], [12, 4]]),
        strides=torch.tensor([8.0, 16]),
    )


def test_best_pairs_their_boxes_and_masks():
    dense = hand_made()
    scores, labels, place = best(dense, 6)
    assert labels[0, :2].tolist() == [0, 1] and place[0, :2].tolist() == [0, 1]
    assert scores[0, 0] == pytest.approx(torch.tensor(9.0).sigmoid().square().item())
    assert (scores[:, 4:] == 0).all(), "there are only four pairs"
    boxes = boxes_at(dense, place, (20, 30))
    assert boxes[0, :2].tolist() == [[3, 2, 7, 8], [0, 0, 30, 20]]
    masks = masks_at(dense, place[:, :2], MaskHead(), 1)
    alone = mask_logits(
        dense.features[:1], dense.params[0, 1:], torch.tensor([0]), dense.points[1:], torch.tensor([128.0]), MaskHead()
    )
    assert torch.allclose(masks[0, 1], alone[0, 0], atol=1e-5)


def test_suppression_is_torchvisions_within_image_and_class():
    torch.manual_seed(0)
    corner = 200 * torch.rand(3, 60, 2)
    boxes = torch.cat((corner, corner + 20 + 100 * torch.rand(3, 60, 2)), 2)
    scores, labels = torch.rand(3, 60), torch.randint(4, (3, 60))
    got = suppress(boxes, scores, labels, 0.3)
    for image in range(3):
        kept = batched_nms(boxes[image], scores[image], labels[image], 0.3)
        want = torch.zeros(60).index_fill(0, kept, 1) * scores[image]
        assert 0 < len(kept) < 60 and torch.equal(got[image], want)


def test_predict_gives_the_photographs_own_size(model):
    image = torch.randint(0, 256, (3, 75, 101), dtype=torch.uint8)
    found = predict(model, image, short=64, long=200, threshold=0.001, detections=20)
    N = len(found.scores)
    assert 0 < N <= 20 and found.masks.shape == (N, 75, 101) and found.masks.dtype == torch.bool
    assert (found.boxes[:, 2] <= 101.001).all() and (found.boxes[:, 3] <= 75.001).all()
    assert (found.scores[:-1] >= found.scores[1:]).all()
    nothing = predict(model, image, short=64, long=200, threshold=1.0)
    assert nothing.boxes.shape == (0, 4) and nothing.masks.shape == (0, 75, 101)


def test_masks_are_enlarged_to_where_they_belong():
    logits = torch.full((20, 8, 12), -9.0)
    logits[:, 2:6, 3:9] = 9
    masks = enlarge(logits, 4, (30, 46), (60, 92))
    assert masks.shape == (20, 60, 92)
    inside = torch.zeros(60, 92, dtype=torch.bool)
    inside[22:44, 30:68] = True  # rows 2 to 5 of 4 pixels, twice as large, less the border
    assert masks[19][inside].all()
    inside[:] = False
    inside[14:52, 22:76] = True
    assert not masks[19][~inside].any()


def test_sizes():
    assert scaled((375, 500), 320, 533) == (320, 427)
    assert scaled((1, 5000), 320, 533) == (1, 533)


def test_pretrained_weights_freeze_what_comes_before_the_second_stage(monkeypatch):
    def get_model(name, weights=None):
        return torchvision.models.resnet18()

    monkeypatch.setattr("convary.models.condinst.get_model", get_model)
    model = small(pretrained=True).train()
    assert model.frozen and not model.backbone.body.bn1.training and model.mask_branch.training
    body = model.backbone.body
    assert not body.conv1.weight.requires_grad and not body.layer1[0].conv1.weight.requires_grad
    assert body.layer2[0].conv1.weight.requires_grad and not body.layer2[0].bn1.weight.requires_grad


def test_weights_that_cannot_be_had_are_told(monkeypatch):
    def get_model(name, weights=None):
        if weights is not None:
            raise OSError("no network")
        return torchvision.models.resnet18()

    monkeypatch.setattr("convary.models.condinst.get_model", get_model)
    with pytest.warns(RandomWeightsWarning, match="resnet18 starts from random weights"):
        model = small(pretrained=True)
    assert not model.frozen and all(p.requires_grad for p in model.parameters())


def test_errors_say_what_is_wanted(model):
    with pytest.raises(ConfigError, match=r"ResNet or RegNet .* did you mean 'resnet50'"):
        CondInst(3, backbone="resnet5O")
    for options in ({"channels": 48}, {"channels": 32}, {"classes": 0}, {"mask_stride": 3}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            CondInst(**{"classes": 3, "backbone": "resnet18"} | options)
    with pytest.raises(ConfigError, match="detections"):
        Detector(model, candidates=5, detections=6)
    with pytest.raises(ShapeError, match=r"\(B, 3, H, W\)"):
        model(torch.zeros(3, 64, 64))
    for image in (
        torch.zeros(3, 8, 8),
        torch.zeros(1, 8, 8, dtype=torch.uint8),
        torch.zeros(3, 0, 8, dtype=torch.uint8),
    ):
        with pytest.raises(DataError, match="an image must be"):
            predict(model, image)


def test_bf16_stays_near(model):
    """The mask heads run in float32: a coordinate of 800 pixels has more digits than bfloat16."""
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        want = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            dense = model(x)
            masks = masks_at(dense, torch.zeros(1, 2, dtype=torch.int64), MaskHead(), 2)
    assert masks.dtype == torch.float32
    for name in ("logits", "distances", "centerness", "params", "features"):
        one, other = getattr(dense, name), getattr(want, name)
        assert one.dtype == torch.float32 and (one - other).abs().max() < 0.1 * other.abs().max(), name


@pytest.mark.slow
def test_exports_for_every_batch_and_size(tmp_path):
    """One program, read back from its file, with the dynamic head and the suppression inside."""
    detector = Detector(small(), candidates=30, detections=5, threshold=0.001).eval()
    cv.export(detector, torch.randn(2, 3, 160, 288), tmp_path / "condinst.pt2")
    program = torch.export.load(tmp_path / "condinst.pt2").module()
    for shape in ((2, 3, 160, 288), (1, 3, 129, 257), (3, 3, 192, 131)):
        x = torch.randn(shape)
        with torch.no_grad():
            want, got = detector(x), program(x)
        assert (want["scores"] > 0).any()
        assert all(near(got[name], value) for name, value in want.items())


def test_exported_suppression_may_leave_a_single_box():
    class Suppress(nn.Module):
        def forward(self, boxes, scores, labels):
            return suppress(boxes, scores, labels, 0.6)

    boxes = torch.tensor([0.0, 0, 9, 9]).expand(1, 5, 4)
    arguments = (boxes, torch.rand(1, 5), torch.zeros(1, 5, dtype=torch.int64))
    program = torch.export.export(Suppress(), arguments).module()
    assert (program(*arguments) > 0).sum() == 1


@pytest.mark.slow
def test_onnxruntime_runs_it_all(tmp_path):
    """Backbone to masks in one file; exports of the authors' code end before the dynamic head."""
    detector = Detector(small(), candidates=200, detections=10, threshold=0.001).eval()
    cv.export(detector, torch.randn(2, 3, 160, 288), tmp_path / "condinst.onnx")
    session = onnx_session(tmp_path / "condinst.onnx")
    for shape in ((1, 3, 160, 192), (3, 3, 197, 231)):
        x = torch.randn(shape)
        with torch.no_grad():
            want = detector(x)
        assert all(near(one, other) for one, other in zip(session(x), want.values(), strict=True))


@pytest.mark.slow
def test_compiles_without_a_break(model):
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    for shape in ((2, 3, 160, 288), (3, 3, 192, 224)):
        x = torch.randn(shape)
        with torch.no_grad():
            for one, other in zip(compiled(x), model(x), strict=True):
                assert near(one, other)
