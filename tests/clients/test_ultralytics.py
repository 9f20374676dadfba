# SPDX-License-Identifier: Apache-2.0
"""Ultralytics' own programs, with real training on a few drawn images: convert, train, resume, val, predict, export."""

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import convary as cv
from tests.nets import excite, onnx_session

ultralytics = pytest.importorskip("ultralytics")
cv2 = pytest.importorskip("cv2")
from ultralytics import YOLO  # noqa: E402
from ultralytics.nn import tasks  # noqa: E402
from ultralytics.nn.modules.block import RepVGGDW  # noqa: E402
from ultralytics.nn.modules.conv import Conv, Conv2, ConvTranspose, RepConv  # noqa: E402

yolo = cv.integrations.ultralytics
pytestmark = pytest.mark.slow
GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "ultralytics.md"
BOX = [(0.25, 0.25), (0.75, 0.25), (0.75, 0.75), (0.25, 0.75)]  # what is drawn, corners in parts of the image
LABELS = {
    "detect": "0.5 0.5 0.5 0.5",
    "segment": " ".join(f"{x} {y}" for x, y in BOX),
    "obb": " ".join(f"{x} {y}" for x, y in BOX),
    "pose": "0.5 0.5 0.5 0.5 " + " ".join(f"{x} {y} 2" for x, y in BOX),
}
HEADS = {
    "detect": "[[1, 3], 1, Detect, [nc]]",
    "segment": "[[1, 3], 1, Segment, [nc, 8, 16]]",
    "obb": "[[1, 3], 1, OBB, [nc, 1]]",
    "pose": "[[1, 3], 1, Pose, [nc, kpt_shape]]",
    "classify": "[-1, 1, Classify, [nc]]",
}
ALL_BUT_FIRST = cv.where.kernel_size(3) & ~cv.where.first()


def network(head=HEADS["detect"], second="[-1, 1, Conv, [32, 3, 2]]"):
    """The yaml of a network of four small stages."""
    rows = ("[-1, 1, Conv, [16, 3, 2]]", second, "[-1, 1, C3k2, [32, False, 0.5]]", "[-1, 1, Conv, [32, 3, 2]]")
    backbone = "".join(f"  - {row}\n" for row in rows)
    scales = "nc: 2\nkpt_shape: [4, 3]\nscales:\n  n: [1.0, 0.5, 64]\n"
    return f"{scales}backbone:\n{backbone}head:\n  - {head}\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images with a bright square, labelled for every task, and the networks' yaml files."""
    root = tmp_path_factory.mktemp("yolo")
    generator = torch.Generator().manual_seed(0)
    for task, head in HEADS.items():
        (root / f"{task}.yaml").write_text(network(head))
        for part, count in (("train", 4), ("val", 2)):
            for i in range(count):
                image = torch.randint(0, 60, (64, 64, 3), generator=generator, dtype=torch.uint8).numpy()
                image[16:48, 16:48, i % 2] = 230
                sort = ("a", "b")[i % 2]
                place = f"{task}/{part}/{sort}" if task == "classify" else f"{task}/images/{part}"
                (root / place).mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(root / place / f"{i}.png"), image)
                if task != "classify":
                    label = root / f"{task}/labels/{part}/{i}.txt"
                    label.parent.mkdir(parents=True, exist_ok=True)
                    label.write_text(f"{i % 2} {LABELS[task]}\n")
        data = f"path: {root / task}\ntrain: images/train\nval: images/val\nnames: [a, b]\nkpt_shape: [4, 3]\n"
        (root / f"{task}_data.yaml").write_text(data)
    return root


def arguments(folder, name, task="detect", **more):
    usual = {
        "data": str(folder / task) if task == "classify" else str(folder / f"{task}_data.yaml"),
        "project": str(folder / "runs"),
        "name": name,
        "imgsz": 64,
        "batch": 2,
        "epochs": 2,
        "workers": 0,
        "plots": False,
        "device": "cpu",
        "exist_ok": True,
        "verbose": False,
    }
    return usual | more


def converted(model):
    return [m for m in model.modules() if isinstance(m, cv.nn.Placed) and m.converted]


@pytest.fixture(scope="module")
def trained(folder):
    """A converted network after two epochs: what ``YOLO`` holds, and its best.pt."""
    model = YOLO(str(folder / "detect.yaml"))
    model.train(trainer=yolo.trainer(cv.ODConv(experts=2), ALL_BUT_FIRST), **arguments(folder, "trained"))
    return model, folder / "runs" / "trained" / "weights" / "best.pt"


class Blocks(tasks.BaseModel):
    """Every block that ``fuse`` changes."""

    def __init__(self):
        super().__init__()
        blocks = Conv(4, 16, 3), Conv2(16, 16), RepConv(16, 16, bn=True), RepVGGDW(16), ConvTranspose(16, 8, 2, 2)
        self.model = nn.Sequential(*blocks)
        for norm in self.modules():
            if isinstance(norm, nn.BatchNorm2d):
                for tensor in (norm.weight, norm.bias, norm.running_mean):
                    nn.init.normal_(tensor)
                nn.init.uniform_(norm.running_var, 0.5, 2.0)

    def forward(self, x):
        return self.model(x)

    def info(self, **_):
        pass


CONFIGS = {config.name: (config(), {}) for config in cv.METHODS}
CONFIGS["involution"] = (cv.Involution(group_channels=4), {"upcycle": False})


@pytest.mark.parametrize("name", CONFIGS)
def test_fuse_is_exact(name):
    torch.manual_seed(0)
    config, options = CONFIGS[name]
    where = cv.where.kernel_size(3) & ~cv.where.first() if name == "involution" else cv.where.all()
    model = excite(cv.convert(Blocks(), config, where, **options))
    fused = copy.deepcopy(model).fuse(verbose=False)
    x = torch.randn(2, 4, 12, 12)
    with torch.no_grad():
        want, got = model(x), fused(x)
    assert (got - want).abs().max() <= 1e-4 * want.abs().max()
    assert fused.is_fused() and fused.fuse() is fused
    inside = {m for layer in converted(fused) for m in layer.modules()}
    norms = [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d) and m not in inside]
    absorbs = all(getattr(m, "absorbs", False) for m in converted(model))
    assert not absorbs or len(norms) == 2  # of RepConv's identity branch, and behind Conv2's sum


def test_static_networks_are_fused_and_counted_as_ever():
    x = torch.randn(1, 4, 12, 12)
    static = Blocks().eval()
    fused = copy.deepcopy(static).fuse()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    with torch.no_grad():
        assert torch.allclose(fused(x), static(x), atol=1e-4)


@pytest.mark.parametrize("config", [cv.KernelWarehouse(), cv.ODConv(), cv.DCD()], ids=lambda config: config.name)
def test_gflops_are_those_of_the_summary(folder, config):
    model = YOLO(str(folder / "detect.yaml")).model
    dynamic = cv.convert(model, config, ALL_BUT_FIRST)
    counted = [m.info(imgsz=60)[3] for m in (dynamic, dynamic.eval())]  # rounded up to a multiple of the stride
    want = 2 * cv.summary(dynamic, torch.zeros(1, 3, 64, 64)).macs / 1e9
    assert counted == [pytest.approx(want)] * 2
    assert want > 2 * cv.summary(model, torch.zeros(1, 3, 64, 64)).macs / 1e9


def test_training_converts_anneals_and_writes_what_it_trained(trained):
    model, best = trained
    assert len(converted(model.model)) == 12
    again = YOLO(str(best)).model
    assert cv.recipe(again) == cv.recipe(model.model)
    state = again.convary_annealing
    assert state["steps"] == round(2 / 3 * 2) and state["last_step"] == 4
    temperatures = {float(m.temperature) for m in again.modules() if getattr(m, "temperature", None) is not None}
    assert temperatures == {1.0}  # also in the moving average, which the file holds


def test_val_predict_and_export_in_a_process_that_imports_ultralytics_only(trained, folder, tmp_path):
    best = Path(trained[1])
    copied = tmp_path / "best.pt"
    copied.write_bytes(best.read_bytes())
    program = f"""
import json, torch
from ultralytics import YOLO
model, x = YOLO({str(copied)!r}), torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    want = model.model(x)[0]
    fused = __import__("copy").deepcopy(model.model).fuse()(x)[0]
model.val(data={str(folder / "detect_data.yaml")!r}, imgsz=64, workers=0, plots=False, device="cpu")
boxes = model.predict({str(folder / "detect/images/val/0.png")!r}, imgsz=64, conf=0.001)[0].boxes
files = [model.export(format="onnx", imgsz=64, simplify=False), model.export(format="torchscript", imgsz=64)]
torch.save({{"x": x, "want": want, "fused": fused, "boxes": boxes.data, "files": files}}, {str(tmp_path / "out")!r})
"""
    env = os.environ | {"YOLO_CONFIG_DIR": str(tmp_path), "YOLO_OFFLINE": "true"}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    out = torch.load(tmp_path / "out", weights_only=True)
    onnx, script = out["files"]
    with torch.no_grad():
        results = [out["fused"], onnx_session(Path(onnx))(out["x"])[0], torch.jit.load(script)(out["x"])]
    for result in results:
        assert (result - out["want"]).abs().max() <= 1e-4 * out["want"].abs().max()


@pytest.mark.parametrize("config", cv.METHODS, ids=lambda config: config.name)
def test_onnx_of_any_batch_and_size(config, folder, tmp_path):
    model = YOLO(str(folder / "detect.yaml"))
    model.model = excite(cv.convert(model.model, config(), ALL_BUT_FIRST))
    model.model.pt_path = str(tmp_path / "model.pt")
    run = onnx_session(Path(model.export(format="onnx", imgsz=64, dynamic=True, simplify=False)))
    for x in (torch.rand(3, 3, 64, 96), torch.rand(1, 3, 128, 32)):
        with torch.no_grad():
            want = model.model(x)[0]
        assert (run(x)[0] - want).abs().max() <= 1e-4 * want.abs().max()


class Stop(Exception):
    """Ends a training from a callback."""


def stop_at(epoch):
    def callback(trainer):
        if trainer.epoch == epoch:
            raise Stop

    return callback


def test_resumes_where_it_was(folder):
    made = yolo.trainer(cv.DyConv(experts=2), ALL_BUT_FIRST, anneal_epochs=3)
    first = YOLO(str(folder / "detect.yaml"))
    first.add_callback("on_train_epoch_start", stop_at(2))
    with pytest.raises(Stop):
        first.train(trainer=made, **arguments(folder, "resumed", epochs=4))
    steps = []
    again = YOLO(str(folder / "runs/resumed/weights/last.pt"))
    again.add_callback("on_train_batch_end", lambda t: steps.append((t.annealing.last_step, t.annealing.temperature)))
    again.train(trainer=made, resume=True)
    assert [step for step, _ in steps] == [5, 6, 7, 8]
    assert steps[0][1] == pytest.approx(30 - 29 * 5 / 6) and steps[-1][1] == 1.0
    assert {type(m).__name__ for m in converted(again.model)} == {"DyConv2d"}


def test_fine_tuning_starts_from_the_checkpoint(trained, folder):
    _, best = trained
    want, seen = YOLO(str(best)).model, {}

    def look(running):
        seen.update(running.model.state_dict())
        seen["annealing"] = running.annealing
        raise Stop

    model = YOLO(str(best))
    model.add_callback("on_train_batch_start", look)
    with pytest.raises(Stop):
        model.train(trainer=yolo.trainer(), **arguments(folder, "tuned"))
    assert seen.pop("annealing") is None  # the routers stay as cold as they are
    assert all(torch.equal(seen[name], tensor) for name, tensor in want.state_dict().items() if "running" not in name)


def test_frozen_layers_keep_the_statistics_of_their_routers(trained, folder):
    """https://github.com/ultralytics/ultralytics/pull/8753: ``freeze=`` stops the running statistics too, by class."""
    seen = {}

    def look(running):
        seen.update(running.model.state_dict())
        raise Stop

    model = YOLO(str(trained[1]))
    model.add_callback("on_train_epoch_end", look)
    with pytest.raises(Stop):
        model.train(trainer=yolo.trainer(), **arguments(folder, "frozen", freeze=3, epochs=1))
    before = YOLO(str(trained[1])).model.state_dict()
    changed = {name for name in before if "running" in name and not torch.equal(seen[name], before[name].float())}
    assert any("router" in name for name in changed)
    assert all(int(name.split(".")[1]) >= 3 for name in changed)


def test_a_trainer_that_drops_the_conversion_warns(trained, folder):
    by_hand = YOLO(str(folder / "detect.yaml"))
    by_hand.model = cv.convert(by_hand.model, cv.ODConv(experts=2), ALL_BUT_FIRST)
    for model in (by_hand, YOLO(str(trained[1]))):
        model.add_callback("on_train_epoch_start", stop_at(0))
        call = (
            r"12 layers to ODConv is lost: DetectionTrainer built .*trainer=convary\.integrations\.ultralytics\.trainer"
        )
        with pytest.warns(cv.ConversionWarning, match=call), pytest.raises(Stop):
            model.train(**arguments(folder, "lost"))


@pytest.mark.parametrize("task", [task for task in HEADS if task != "detect"])
def test_other_tasks(folder, task):
    model = YOLO(str(folder / f"{task}.yaml"), task=task)
    made = yolo.trainer(cv.WeightNet(), ALL_BUT_FIRST)
    model.train(trainer=made, **arguments(folder, task, task, epochs=1))
    assert {type(m).__name__ for m in converted(model.model)} == {"WeightNet2d"}
    assert model.predict(torch.rand(1, 3, 64, 64), verbose=False)


def test_layers_by_name_in_a_model_yaml(folder, tmp_path):
    path = tmp_path / "named.yaml"
    path.write_text(network(second="[-1, 2, ODConv2d, [16, 3, 1, {experts: 2}]]"))
    model = YOLO(str(path))
    first, second = (block.conv for block in model.model.model[1])
    assert (first.in_channels, first.out_channels, second.in_channels) == (8, 8, 8)  # widths of scale n
    assert first.num_experts == 2 and not converted(model.model)
    assert model.model.model[1].np == sum(p.numel() for p in model.model.model[1].parameters())
    model.add_callback("on_train_start", lambda running: seen.append(running))
    seen = []
    model.train(trainer=yolo.trainer(), **arguments(folder, "named", epochs=1))  # anneals what the yaml names
    assert isinstance(seen[0].model.model[1][0].conv, cv.ODConv2d) and seen[0].annealing.last_step == 2


@pytest.mark.parametrize("name", [*(config.layers[2].__name__ for config in cv.METHODS), "Involution2d"])
def test_every_method_by_name(tmp_path, name):
    second = f"[-1, 1, {name}, " + ("[16, 3, 1, {group_channels: 4}]]" if name == "Involution2d" else "[32, 3, 2]]")
    model = tasks.DetectionModel(ultralytics.utils.YAML.load(_written(tmp_path, network(second=second))), verbose=False)
    assert type(model.model[1].conv).__name__ == name
    assert all(y.shape[0] == 2 for y in model.train()(torch.rand(2, 3, 64, 64))["feats"])


def _written(folder, text):
    (folder / "model_n.yaml").write_text(text)
    return folder / "model_n.yaml"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("[-1, 1, ODConv2d, [32, 3, 2, {expert: 2}]]", "no option 'expert'.*did you mean 'experts'"),
        ("[-1, 1, ODConv2d, [{experts: 2}, 32, 3, 2]]", "takes Conv's arguments, then one dict of options"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, message):
    with pytest.raises(cv.ConfigError, match=message):
        YOLO(str(_written(tmp_path, network(second=row))))


@pytest.mark.parametrize("version", ["8.3.99", "8.5.0", "9.0.1"])
def test_other_versions_are_named_with_the_supported_range(monkeypatch, version):
    monkeypatch.setattr(ultralytics, "__version__", version)
    with pytest.raises(cv.ConfigError, match=rf"Ultralytics {version} is not supported: .*from 8\.4 to below 8\.5"):
        yolo.trainer(cv.ODConv())
    with pytest.warns(cv.ConversionWarning, match="its fuse"):
        yolo.attend.__wrapped__()


def test_unknown_task():
    with pytest.raises(cv.ConfigError, match="no trainer for task 'depth'"):
        yolo.trainer(cv.ODConv())(overrides={"task": "depth"})


def test_the_guide_runs(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    small = json.dumps(arguments(folder, "guide", epochs=1)).replace("true", "True").replace("false", "False")
    page: dict[str, object] = {}
    for block in blocks:
        for theirs, ours in {
            '"yolo11n.yaml"': repr(str(folder / "detect.yaml")),
            'data="mine.yaml", epochs=100': f"**{small}",
            '"image.jpg"': repr(str(folder / "detect/images/val/0.png")),
            '"runs/detect/train/weights/best.pt"': repr(str(folder / "runs/guide/weights/best.pt")),
        }.items():
            block = block.replace(theirs, ours)
        exec(compile(block, str(GUIDE), "exec"), page)
    assert page["network"].model.yaml["backbone"]
