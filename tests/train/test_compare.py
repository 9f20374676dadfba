# SPDX-License-Identifier: Apache-2.0
"""A comparison of every method, small: what it writes, and that every method gets the same."""

import dataclasses
import json
import warnings

import pytest
import torch

import convary as cv
from convary.data import load
from convary.errors import CheckpointError, ConfigError, DataError
from convary.models.architecture import Architecture
from convary.train import Progress, compare, evaluate, load_model, processes
from convary.train.arms import read_arm
from convary.train.classification import Classification, Run, learning_rate
from convary.train.training import Training

NAMES = ["static", *(method.name for method in cv.METHODS)]


class Recorder(Progress):
    """Keeps everything it hears."""

    def __init__(self):
        self.runs, self.steps, self.points, self.ends, self.measures = [], [], [], [], []

    def on_start(self, run):
        self.runs.append(run)

    def on_step(self, run, step):
        self.steps.append((run.name, step))

    def on_point(self, run, point):
        self.points.append(point)

    def on_end(self, run, point):
        self.ends.append(point["scores"]["top1"])

    def on_measure(self, method, what, index, count):
        self.measures.append((method, what, index, count))


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    """A comparison of all methods, its config and what it told."""
    from convary.train import CompareConfig

    config = CompareConfig(
        data=f"folder:{images}",
        image_size=16,
        model="convnet_nano",
        where="all & ~first",
        epochs=3,
        batch_size=16,
        limit_train=48,
        out=tmp_path_factory.mktemp("all") / "run",
        measure_seconds=0.01,
        cpu=True,
    )
    heard = Recorder()
    return config, compare(config, heard), heard


def test_results_have_every_entry_of_the_schema(finished):
    config, results, _ = finished
    assert results["schema"] == 1
    assert results == json.loads((config.out / "results.json").read_text())
    run, data = results["run"], results["data"]
    assert run["seeds"] == [0]
    assert run["command"].startswith("convary compare --data folder:")
    assert run["started"] <= run["finished"]
    assert set(config.to_dict()) <= set(run)
    assert set(results["machine"]) >= {"cpu", "cores", "threads", "memory_gb", "os", "python", "torch", "convary"}
    assert (data["train"], data["test"], data["shape"]) == (48, 20, [3, 16, 16])
    assert [entry["name"] for entry in results["methods"]] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_method_has_its_figures(finished, name):
    config, results, _ = finished
    entry = next(entry for entry in results["methods"] if entry["name"] == name)
    assert (entry["layers"] == 0) == (name == "static") == (entry["config"] is None)
    assert [timing["batch"] for timing in entry["latency"]] == [1, 16]
    for timing in [*entry["latency"], entry["step"]]:
        assert timing["ms"] > 0
        assert timing["low"] <= timing["high"]
    assert entry["top1"]["std"] is None
    (seed,) = entry["seeds"]
    assert seed["top1"] == entry["top1"]["mean"] == seed["curve"][-1]["test_top1"]
    assert [point["epoch"] for point in seed["curve"]] == [1.0, 2.0, 3.0]
    assert (config.out / seed["checkpoint"]).is_file()
    assert sum(entry["correlation"]["bands"]) == pytest.approx(1)


@pytest.mark.parametrize("name", NAMES)
def test_routing_has_one_row_per_class(finished, name):
    _, results, _ = finished
    entry = next(entry for entry in results["methods"] if entry["name"] == name)
    method = read_arm(name).method
    layer = None if method is None else method.build(torch.nn.Conv2d(24, 24, 3))
    expected = set() if layer is None else set(layer.coefficients(torch.randn(1, 24, 5, 5)).factors())
    assert {row["factor"] for row in entry["routing"]} == expected
    for row in entry["routing"]:
        assert len(row["by_class"]) == 4
        assert len({len(values) for values in row["by_class"]}) == 1
        assert row["within_class_std"] >= 0
        softmax = row["factor"] == "kernel" and name in ("dyconv", "odconv")
        assert (row["entropy"] is not None) == softmax
        if softmax:
            assert all(sum(values) == pytest.approx(1, abs=1e-4) for values in row["by_class"])
            assert 0 <= row["entropy"] <= 1 + 1e-9


def test_temperature_falls_to_its_last_value(finished):
    _, results, heard = finished
    for entry in results["methods"]:
        temperatures = [point["temperature"] for point in entry["seeds"][0]["curve"]]
        last = {"dyconv": 1.0, "odconv": 1.0, "kernelwarehouse": 0.0}.get(entry["name"])
        assert temperatures == [last] * 3
    first = next(step for method, step in heard.steps if method == "odconv")
    assert 1 < first.temperature < 30


def test_every_method_has_the_same_budget(finished):
    _, _, heard = finished
    by_method = {name: [step for method, step in heard.steps if method == name] for name in NAMES}
    assert all([step.lr for step in steps] == [step.lr for step in by_method["static"]] for steps in by_method.values())
    assert len(by_method["static"]) == 9 == heard.runs[0].total_steps
    assert [run.name for run in heard.runs] == NAMES
    count = len(NAMES)
    assert [run.index for run in heard.runs] == list(range(count))
    assert len(heard.points) == 3 * count
    assert len(heard.ends) == count
    assert heard.measures[-1] == (NAMES[-1], "latency", count - 1, count)


@pytest.mark.parametrize("name", ["static", "odconv"])
def test_eval_gives_the_accuracy_of_the_report(finished, name):
    config, results, _ = finished
    entry = next(entry for entry in results["methods"] if entry["name"] == name)
    path = config.out / entry["seeds"][0]["checkpoint"]
    result = evaluate(path)
    assert result.method == name
    assert result.top1 == pytest.approx(entry["top1"]["mean"])
    assert result.loss == pytest.approx(entry["seeds"][0]["curve"][-1]["test_loss"], rel=1e-4)
    assert sum(map(sum, result.confusion)) == result.images == 20
    assert list(result.classes) == results["data"]["classes"]
    assert sum(result.classes.values()) / 4 == pytest.approx(result.top1)
    assert not load_model(path).training
    if name != "static":  # the file and the static network are enough
        architecture = Architecture(**torch.load(path, weights_only=True)["architecture"])
        again = cv.load(dataclasses.replace(architecture, method=None).build().eval(), path)
        x = torch.randn(2, *architecture.shape)
        assert torch.equal(again(x), load_model(path)(x))


def test_eval_on_other_data(finished):
    config, results, _ = finished
    path = config.out / results["methods"][0]["seeds"][0]["checkpoint"]
    with pytest.raises(DataError, match=r"has 10 classes and images of \(1, 28, 28\)"):
        evaluate(path, "fashion-mnist-mini")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        evaluate(path.with_name("nothing.pt"))


def test_several_seeds_give_a_deviation(make):
    entry = compare(make(seeds=2, epochs=1))["methods"][0]
    tops = [seed["top1"] for seed in entry["seeds"]]
    assert entry["top1"]["mean"] == pytest.approx(sum(tops) / 2)
    assert entry["top1"]["std"] == pytest.approx(abs(tops[0] - tops[1]) / 2**0.5)
    assert [seed["seed"] for seed in entry["seeds"]] == [0, 1]
    losses = [seed["curve"][0]["train_loss"] for seed in entry["seeds"]]
    assert losses[0] != losses[1]


@pytest.mark.parametrize("method", cv.METHODS, ids=lambda method: method.name)
def test_upcycled_networks_start_as_the_static_one(method):
    def network(config, init):
        return Architecture(
            model="mobilenet_v2_tiny",
            num_classes=10,
            shape=(1, 28, 28),
            method=None if config is None else config.to_json(),
            init=init,
            seed=3,
        ).build()

    x = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    static, upcycled, again, paper = (
        network(config, init).train()(x)
        for config, init in ((None, "paper"), (method(), "upcycle"), (method(), "upcycle"), (method(), "paper"))
    )
    torch.testing.assert_close(upcycled, static, rtol=1e-3, atol=1e-4)
    assert torch.equal(upcycled, again)
    assert not torch.allclose(paper, static, rtol=1e-3, atol=1e-4)


def test_scores_are_written_before_the_times_and_only_these_are_made_up_for(make):
    """An interrupt while times are measured loses no training; other seconds measure again, none measure nothing."""

    class Impatient(Recorder):
        scores = None

        def on_scores(self, results):
            self.scores = results

        def on_measure(self, method, what, index, count):
            super().on_measure(method, what, index, count)
            if what == "latency":
                raise KeyboardInterrupt

    config, ear, path = make(methods=("static", "odconv")), Impatient(), make().out / "results.json"
    with pytest.raises(KeyboardInterrupt):
        compare(config, ear)
    early = json.loads(path.read_text())
    assert early == ear.scores and all(entry["top1"]["mean"] > 0 for entry in early["methods"])
    assert [(entry["latency"], entry["step"], entry["memory"]) for entry in early["methods"]] == [([], None, None)] * 2
    ear = Recorder()
    assert compare(dataclasses.replace(config, measure_seconds=0.0), ear) == early
    assert not ear.runs and not ear.measures
    whole = compare(config, ear := Recorder())
    assert not ear.runs and ear.measures[-1][:2] == ("odconv", "latency") and whole == json.loads(path.read_text())
    for before, after in zip(early["methods"], whole["methods"], strict=True):
        assert len(after["latency"]) == 2 and after["step"]["ms"] > 0 and after["memory"] > 0
        assert before == {**after, "latency": [], "step": None, "memory": None}
    ear = Recorder()
    assert compare(config, ear) == whole and not ear.measures
    again = compare(dataclasses.replace(config, measure_seconds=0.02), ear := Recorder())
    assert again["run"]["measure_seconds"] == 0.02 and ear.measures and not ear.runs


def test_no_seconds_measure_nothing(make):
    ear = Recorder()
    (entry,) = compare(make(epochs=1, measure_seconds=0.0), ear)["methods"]
    assert (entry["latency"], entry["step"], entry["memory"]) == ([], None, None)
    assert {what for _, what, _, _ in ear.measures} == {"parameters and MACs", "routing and correlations"}
    with pytest.raises(ConfigError, match=r"measure_seconds must be at least 0 and below inf; got -1"):
        make(measure_seconds=-1.0)


@pytest.mark.slow
def test_it_learns(make):
    """Trousers, sandals, bags and boots: far above chance after 100 steps."""
    entry = compare(make(epochs=10))["methods"][0]
    assert entry["top1"]["mean"] >= 60  # chance is 25
    curve = entry["seeds"][0]["curve"]
    assert curve[-1]["train_loss"] < curve[0]["train_loss"]


def test_divergence_is_said(make):
    with pytest.raises(ConfigError, match=r"static with seed 0 diverged .* give a smaller --lr"):
        compare(make(lr=1e30))


def test_bad_model_and_data_leave_no_folder(make):
    for options, error in (({"model": "resnet21"}, ConfigError), ({"data": "folder:/nowhere"}, DataError)):
        config = dataclasses.replace(make(), **options)
        with pytest.raises(error):
            compare(config)
        assert not config.out.exists()


def test_evaluating_while_routers_are_annealed_warns_of_nothing(make):
    with warnings.catch_warnings():
        warnings.simplefilter("error", cv.TemperatureWarning)
        results = compare(make(methods=("odconv",), epochs=3, anneal_epochs=2))
    assert results["methods"][0]["seeds"][0]["curve"][0]["temperature"] > 1


def test_warm_up_then_cosine():
    rates = [learning_rate(step, 100, 0.5, 0.1) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert max(rates) == pytest.approx(0.5, rel=0.03)
    assert rates[-1] < 1e-3
    assert learning_rate(0, 10, 0.5, 0.0) == 0.5


@pytest.mark.parametrize("init", ["paper", "upcycle"])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_routers_have_no_weight_decay_and_upcycled_banks_their_own_rate(make, init, name):
    config = make(methods=("odconv",), optimizer=name, init=init, model="convnet_nano", where="all & ~first", clip=None)
    run = Run(config.arms()["odconv"], 0, 0.1)
    accelerator = processes.start(cpu=True)
    system = Classification(config, run, load(config.data, image_size=16), accelerator)
    training = Training(system, accelerator, run.path(config.out))
    banks = {id(m.weight) for m in training.bare.modules() if isinstance(m, cv.nn.DynamicLayer)}
    routed = {id(p) for m in training.bare.modules() if isinstance(m, cv.nn.Router) for p in m.parameters()}
    lr = training.run(Progress())[-1]["lr"]
    for group in training.optimizer.param_groups:
        for p in group["params"]:
            share = 4 if id(p) in banks and (init, name) == ("upcycle", "sgd") else 1
            assert group["lr"] == pytest.approx(share * lr)
            assert group["weight_decay"] == (0 if id(p) in routed or p.ndim < 2 else pytest.approx(5e-4 / share))
