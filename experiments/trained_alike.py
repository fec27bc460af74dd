"""Models trained alike for the same short time, so that what differs is the model."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser

from groupmorph_monai.apps.configs import config_files
from groupmorph_monai.apps.suites.methods import bundle_method
from groupmorph_monai.benchmarks.compare import BundleMethod
from groupmorph_monai.data.writing.output_folder import whole_file
from groupmorph_monai.workflow.literal import literal

__all__ = ["HALF_THE_FILTERS", "refined", "train_alike", "train_model"]

# Of VoxelMorph-diff, for four times as many iterations in a time.
HALF_THE_FILTERS = {
    "network_def#encoder_channels": [16, 32, 32, 32, 32],
    "network_def#decoder_channels": [32, 32, 32],
}

# One rate for all, as papers give theirs for days of training; no time goes into validation.
_ALIKE = {"learning_rate": 1e-3, "phantoms_training": 12, "iterations_per_epoch": 20, "val_interval": 10**9}


def train_alike(
    method: BundleMethod,
    train_files: Sequence[str],
    folder: Path,
    minutes: float,
    timepoints: int,
    progress: Callable[[str], None],
    **settings: object,
) -> BundleMethod:
    """``method`` with the weights that its model has after so many minutes of training.

    Args:
        train_files: train.yaml and overlays.
        folder: for what the training writes, which goes on from what it finds there; series are prepared once, in the
            folder above it.
        minutes: of training; it stops at the end of the epoch in which they are over. Preparing series does not count.
        timepoints: K of a network that takes one K alone.
        progress: told of each epoch.
        settings: of this training alone.
    """
    parser = ConfigParser()
    parser.read_config(list(train_files))
    started, minutes_of_warm_up = math.inf, 0.05 * minutes

    def rate(_: int) -> float:
        """Share of the learning rate: up from 0 at first, and down to 0 when the time is over."""
        over = max(0.0, time.perf_counter() - started) / 60
        return min(1.0, over / minutes_of_warm_up) * (1 + math.cos(math.pi * min(1.0, over / minutes))) / 2

    schedule = {"_target_": "torch.optim.lr_scheduler.LambdaLR", "optimizer": "@optimizer", "lr_lambda": rate}
    one_k = {} if parser.get("timepoints") is None else {"timepoints": timepoints}
    places = {"output_dir": literal(folder), "train#dataset#cache_dir": literal(folder.parent / "series")}
    for name, value in {
        **_ALIKE,
        "lr_scheduler": schedule,
        **one_k,
        **places,
        **settings,
        "max_minutes": minutes,
    }.items():
        parser[name] = value
    parser.parse()
    parser.get_parsed_content("initialize")
    dataset = parser.get_parsed_content("train#dataset")
    for number in range(len(dataset)):
        dataset[number]
    trainer = parser.get_parsed_content("train#trainer")

    def tell(engine: Engine) -> None:
        seconds, loss = time.perf_counter() - started, engine.state.output[0]["loss"].item()
        progress(f"{folder.name}: {engine.state.iteration} iterations, {seconds:.0f} s, loss {loss:.4f}")

    trainer.add_event_handler(Events.EPOCH_COMPLETED, tell)
    started = time.perf_counter()
    parser.get_parsed_content("run")
    weights = folder / "weights.pt"
    with whole_file(weights) as path:
        torch.save(parser.get_parsed_content("network").state_dict(), path)
    return replace(method, weights=str(weights), settings={**method.settings, **one_k})


def train_model(
    folder: Path,
    minutes: float,
    overlays: Sequence[str],
    train_overlays: Sequence[str],
    timepoints: int,
    progress: Callable[[str], None],
    model: Mapping[str, object] | None = None,
    **settings: object,
) -> BundleMethod:
    """Train a model of the bundle by `train_alike`, as a method that is a single pass of its network.

    Args:
        folder, minutes, timepoints, progress: of `train_alike`.
        overlays, train_overlays: over inference.yaml and train.yaml.
        model: values of both.
        settings: values of the training alone.
    """
    model = model or {}
    method = replace(bundle_method(None, *overlays, "effort/no_refine"), settings=model)
    files = config_files("train", train_overlays)
    return train_alike(method, files, folder, minutes, timepoints, progress, **model, **settings)


def refined(trained: BundleMethod, overlays: Sequence[str]) -> BundleMethod:
    """Add the refinement to what `train_model` returns."""
    return replace(trained, config_files=config_files("inference", overlays))
