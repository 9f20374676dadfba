"""HDFNet against the authors' numbers; sizes, export, compilation, precision, bad input."""

from urllib.error import URLError

import pytest
import torch
from torch import nn

import convary as cv
from convary.errors import CheckpointError, ConfigError, ShapeError
from convary.methods.hdfnet import DDPM, DepthDC
from convary.models.backbone import RandomWeightsWarning
from convary.models.hdfnet import hdfnet
from tests.golden.case import COUNTS, Case, cases
from tests.models.nets import tiny_hdfnet
from tests.nets import onnx_session


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if "train" in name else ()) for name in cases("hdfnet_vgg16*")]
)
def test_whole_network_agrees_with_the_authors(name):
    case = Case(name)
    with torch.device("meta"):  # every tensor is loaded
        model = hdfnet(pretrained=False).double()
    model = model.to_empty(device="cpu")
    assert sum(p.numel() for p in model.parameters()) == case.settings["params"]
    cv.load_released(model, case.state)
    case.released(model)
    model.train(case.training)
    with torch.no_grad():
        case.close("out", model(case.inputs["in_data"], case.inputs["in_depth"]).sigmoid())


@pytest.mark.parametrize(
    ("backbone", "theirs"), [("vgg16", "HDFNet_VGG16"), ("vgg19", "HDFNet_VGG19"), ("resnet50", "HDFNet_Res50")]
)
def test_parameter_counts(backbone, theirs):
    with torch.device("meta"):
        model = hdfnet(backbone, pretrained=False)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[theirs]


def one_dilation():
    """The same with pyramids of one branch: a third of the graph."""
    torch.manual_seed(0)
    model = tiny_hdfnet()
    model.pyramids = nn.ModuleDict({stride: DDPM(64, 64, 64, dilations=(3,)) for stride in model.pyramids})
    return model.eval()


@pytest.fixture(scope="module")
def pair():
    rng = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 48, 40, generator=rng), torch.rand(2, 1, 48, 40, generator=rng)


@pytest.mark.parametrize("size", [(48, 32), (37, 51), (16, 19)])
def test_any_size(size):
    model = tiny_hdfnet().eval()
    with torch.no_grad():
        assert model(torch.randn(2, 3, *size), torch.rand(2, 1, *size)).shape == (2, 1, *size)


@pytest.mark.parametrize("size", [(37, 51)])
def test_resnet_ends_at_full_size(size):
    model = hdfnet("resnet50", pretrained=False).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, *size), torch.rand(1, 1, *size)).shape == (1, 1, *size)


def test_depth_decides_through_the_kernels_alone(pair):
    image, depth = pair
    torch.manual_seed(0)
    model = tiny_hdfnet().eval()
    for pyramid in model.pyramids.values():
        for branch in pyramid.branches:
            nn.init.zeros_(branch.generate.weight)
    with torch.no_grad():
        assert torch.equal(model(image, depth), model(image, 1 - depth))
        nn.init.normal_(model.pyramids["16"].branches[0].generate.weight)
        assert not torch.equal(model(image, depth), model(image, 1 - depth))


def test_recomputed_kernels_change_nothing(pair):
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = tiny_hdfnet(recompute=recompute).train()
        model(*pair).square().mean().backward()
        found.append([*(p.grad for p in model.parameters()), *model.buffers()])  # norms see the batch once
    assert all(torch.equal(kept, made_again) for kept, made_again in zip(*found, strict=True))


def test_recomputed_kernels_are_not_kept():
    def kept(recompute):
        sizes = []
        layer = DepthDC(16, 8, 16, recompute=recompute)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            layer(torch.randn(1, 16, 20, 20, requires_grad=True), torch.randn(1, 8, 20, 20))
        return sum(sizes)

    kernels = 16 * 9 * 20 * 20
    assert kept(False) - kept(True) >= kernels


@pytest.mark.slow
def test_exports_with_any_batch_and_size(pair, tmp_path):
    model = one_dilation()
    program = cv.export(model, pair, tmp_path / "hdfnet.onnx").module()
    other = torch.randn(3, 3, 35, 80), torch.rand(3, 1, 35, 80)
    with torch.no_grad():
        want = model(*other)
        torch.testing.assert_close(program(*other), want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(onnx_session(tmp_path / "hdfnet.onnx")(*other)[0], want, rtol=1e-3, atol=1e-4)


def test_compiles_whole(pair):
    model = one_dilation()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(*pair), model(*pair), rtol=1e-4, atol=1e-5)


def test_trains_in_bf16(pair):
    torch.manual_seed(0)
    model = tiny_hdfnet().train()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(*pair)
    assert out.dtype == torch.bfloat16
    out.float().square().mean().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())
    reference = model(*pair)
    assert (out.float() - reference).norm() < 0.1 * reference.norm()


def test_says_that_the_encoders_are_random(monkeypatch):
    def offline(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with torch.device("meta"), pytest.warns(RandomWeightsWarning, match="vgg16_bn starts from random"):
        model = hdfnet()
    assert [encoder["1"][0].in_channels for encoder in (model.rgb, model.depth)] == [3, 1]


def test_inputs_that_do_not_fit(pair):
    image, depth = pair
    for wrong in [(image, depth[:, :, :-1]), (depth, depth), (image, image)]:
        with pytest.raises(ShapeError, match=r"image wants .*got .*resize the depth"):
            tiny_hdfnet()(*wrong)
    with pytest.raises(ConfigError, match="one of vgg16.*got 'vgg61'.*mean 'vgg1"):
        hdfnet("vgg61")


def test_a_checkpoint_of_another_backbone_is_refused():
    with torch.device("meta"):
        wide, other = hdfnet("vgg19", pretrained=False), hdfnet("vgg16", pretrained=False)
    state = {name: torch.empty(tensor.shape, device="meta") for name, tensor in cv.released_state(wide).items()}
    with pytest.raises(CheckpointError, match=r"encoder4.10.weight is left over"):
        cv.load_released(other, state)
