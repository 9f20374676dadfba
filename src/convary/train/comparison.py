# SPDX-License-Identifier: Apache-2.0
"""The main job: train every method with every seed, measure, and write results.json."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator

from convary.bench.machine import code, machine
from convary.data import DataSet
from convary.data.reading import Listing
from convary.files import read_json, write_json
from convary.train import processes
from convary.train.arms import TIMED, checkpoint_path
from convary.train.checkpoint import load_model
from convary.train.classification import Run
from convary.train.config import SKIPPED, CompareConfig
from convary.train.files import RUN_FILE, claim_folder, now, refuse_another_run
from convary.train.forecast import work
from convary.train.jobs import check_jobs, train, train_at_once
from convary.train.log import heard
from convary.train.networks import architecture, start_digest, start_weights, told
from convary.train.progress import Progress
from convary.train.results import Bench, Curve, describe
from convary.train.trials import Choice, choose
from convary.train.widths import measure_widths

RESULTS = "results.json"
SCHEMA = 1


def compare(config: CompareConfig, progress: Progress | None = None, *, command: str | None = None) -> dict[str, Any]:
    """Train a static network and its dynamic versions alike, measure them and write ``OUT/results.json``.

    An interrupted comparison goes on where it was when it is called again; a finished one is only read. With more seeds
    or other methods than before it trains what is missing, and gives what asking for all at once gives. The file is
    written after the last training, and again with the times; where only they are missing, or were asked for with other
    ``measure_seconds``, only they are measured.

    Args:
        config: What to do.
        progress: Hears what happens.
        command: The command line, for the record; by default the one that gives ``config``.

    Returns:
        What ``results.json`` holds.

    Raises:
        ConfigError: a value that cannot work, or an output folder of something else.
        DataError: the data set is missing or broken.
        CheckpointError: a checkpoint in the output folder is truncated or foreign.
        ConvaryError: the output folder cannot be written.
        KeyboardInterrupt: Ctrl-C; the state is saved.
    """
    refuse_another_run(config.out, config.identity(), config.places)  # before anything that takes its time
    accelerator = processes.start(cpu=config.cpu, precision=config.precision, shard=config.shard)
    progress = heard(config, progress or Progress(), is_first=accelerator.is_main_process)
    check_jobs(config, accelerator)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    dataset = config.load_images()
    done = _finished(config)
    timed = done is not None and _is_timed(done, config)
    with torch.random.fork_rng():
        _check_models(config, dataset)
        started = ""
        if accelerator.is_main_process:
            origin = _origin(config, dataset, final=timed)
            started = claim_folder(config.out, config.identity(), now(), origin, config.places)
            listing = Listing(config.out / SKIPPED)
            for reason in dataset.left_out:
                listing.note(reason)
        accelerator.wait_for_everyone()
        if done is None:
            if accelerator.is_main_process:
                if config.pretrained:
                    progress.on_weights(told(config, dataset))
                _fix_widths(config, dataset, accelerator.device, progress)
                progress.on_work(work(config, dataset, accelerator.device, _trained_before(config)))
            accelerator.wait_for_everyone()
            curves, choices = _train(config, dataset, accelerator, progress)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                methods, pictures = _look(config, dataset, accelerator.device, progress, curves)
                methods = [{**entry, "lr": choices[entry["name"]].to_dict()} for entry in methods]
                run = _described(config, dataset, command, started)
                left_out = sorted({*dataset.left_out, *Listing.read(config.out / SKIPPED)})
                content = {"run": run, "machine": machine(), "data": describe(dataset, left_out), "methods": methods}
                write_json(config.out / RESULTS, {"schema": SCHEMA, **content, "pictures": pictures})
                done = read_json(config.out / RESULTS)
        if accelerator.is_main_process and done is not None and not timed and config.measure_seconds:
            progress.on_scores(done)
            _measure(config, dataset, accelerator.device, progress, done)
        accelerator.wait_for_everyone()
    return read_json(config.out / RESULTS)


def _described(config: CompareConfig, dataset: DataSet, command: str | None, started: str) -> dict[str, Any]:
    """The entry ``run`` of results.json."""
    run = {"command": command or config.command(), "started": started, "finished": now()}
    run |= {**config.to_dict(), "seeds": list(range(config.seeds))}
    if config.recipe is not None:
        run["training"] = config.training()
    if config.pretrained:
        run["start_from"] = told(config, dataset)
    return run


def _finished(config: CompareConfig) -> dict[str, Any] | None:
    """What results.json holds where it is of all that is asked for, and of nothing else; otherwise None.

    A folder keeps every training under its settings, so that asking for more seeds or methods trains what is missing,
    and asking for fewer leaves them out of the results alone.
    """
    if not _holds_results(config):
        return None
    run = (results := read_json(config.out / RESULTS)).get("run", {})
    asked = list(config.methods), list(range(config.seeds))
    return results if (run.get("methods"), run.get("seeds")) == asked else None


def _is_timed(results: dict[str, Any], config: CompareConfig) -> bool:
    """Whether results have the times that are asked for: of so many seconds, or none."""
    asked, known = config.measure_seconds, results["run"].get("measure_seconds")
    return not asked or (asked == known and all(entry["step"] is not None for entry in results["methods"]))


def _trained_before(config: CompareConfig) -> dict[str, int]:
    """By arm: how many seeds the results that are there already have; the trainings themselves say the rest."""
    if not _holds_results(config):
        return {}
    return {arm["name"]: len(arm["seeds"]) for arm in read_json(config.out / RESULTS)["methods"]}


def _holds_results(config: CompareConfig) -> bool:
    """Whether the folder has results, and is that of a run at all: ``claim_folder`` answers for any other."""
    return all((config.out / name).exists() for name in (RESULTS, RUN_FILE))


def _origin(config: CompareConfig, dataset: DataSet, *, final: bool) -> dict[str, str]:
    """What must be as it was when the folder was begun; of a final result only what it started from."""
    found = {} if final else {"code of convary": code(), "images": dataset.digest()}
    start = start_digest(config, dataset)
    return {**found, "weights to start from": start} if start else found


def _check_models(config: CompareConfig, dataset: DataSet) -> None:
    """Build every network and read every start once, so that what is wrong is known before anything is trained."""
    for seed in range(config.seeds):
        start_weights(config, dataset, seed)
    for arm in config.arms().values():
        arm = dataclasses.replace(arm, width=2.0) if arm.axis in TIMED else arm  # how wide it is gets measured later
        architecture(arm, config, dataset, 0).build()


def _fix_widths(config: CompareConfig, dataset: DataSet, device: torch.device, progress: Progress) -> None:
    """Measure how wide those static networks are that take the time of another arm, where that was not done before."""
    arms = config.arms()
    found = measure_widths(arms, config.out, lambda arm: architecture(arm, config, dataset, 0), device)
    for name, entry in found.items():
        progress.on_width(arms[name].title, entry)


def _train(
    config: CompareConfig, dataset: DataSet, accelerator: Accelerator, progress: Progress
) -> tuple[dict[str, list[Curve]], dict[str, Choice]]:
    """By arm: the learning curves, one for each seed, and the learning rate."""

    def train_all(runs: list[Run]) -> list[Curve]:
        if config.jobs > 1:
            return train_at_once(config, runs, accelerator, progress)
        return [train(config, run, (i, len(runs)), dataset, accelerator, progress) for i, run in enumerate(runs)]

    arms, choices = config.arms(), choose(config, train_all)
    runs = [Run(arm, seed, choices[name].lr) for seed in range(config.seeds) for name, arm in arms.items()]
    curves: dict[str, list[Curve]] = {name: [] for name in arms}
    for run, curve in zip(runs, train_all(runs), strict=True):
        curves[run.arm.name].append(curve)
    return curves, choices


def _look(
    config: CompareConfig, dataset: DataSet, device: torch.device, progress: Progress, curves: dict[str, list[Curve]]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The entries ``methods``, but for the times, and ``pictures`` of results.json, from the networks of seed 0."""
    bench = Bench(config, dataset, device)
    entries = []
    for index, arm in enumerate(config.arms().values()):
        model = load_model(checkpoint_path(config.out, arm, 0))
        heard = partial(progress.on_measure, arm.name, index=index, count=len(curves))
        entries.append(bench.entry(arm, model, curves, heard))
    return entries, bench.finish(entries)


def _measure(
    config: CompareConfig, dataset: DataSet, device: torch.device, progress: Progress, results: dict[str, Any]
) -> None:
    """Time the networks of seed 0 and write the results once more."""
    bench, arms = Bench(config, dataset, device), config.arms()
    methods = []
    for index, entry in enumerate(results["methods"]):
        model = load_model(checkpoint_path(config.out, arms[entry["name"]], 0))
        heard = partial(progress.on_measure, entry["name"], index=index, count=len(arms))
        methods.append({**entry, **bench.times(arms[entry["name"]], model, heard)})
    run = {**results["run"], "measure_seconds": config.measure_seconds, "finished": now()}
    write_json(config.out / RESULTS, {**results, "run": run, "machine": machine(), "methods": methods})
