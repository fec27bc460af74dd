"""Training of models under equal conditions: the same short time, schedule and data preparation."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser

from groupmorph_monai.apps.configs import config_files
from groupmorph_monai.apps.suites.suite import bundle_method
from groupmorph_monai.benchmarks.compare import BundleMethod
from groupmorph_monai.data.writing.output_folder import atomic_file
from groupmorph_monai.workflow.literal import literal

# Half of VoxelMorph-diff's filters allow four times as many iterations in the same time.
HALF_THE_FILTERS = {
    "network_def#encoder_channels": [16, 32, 32, 32, 32],
    "network_def#decoder_channels": [32, 32, 32],
}

# The papers' learning rates are for days of training: use one for all models. Validate only at the end to save time.
_SETTINGS = {"learning_rate": 1e-3, "phantoms_training": 12, "iterations_per_epoch": 20, "val_interval": 10**9}


def _learning_rate_factor(elapsed_s: float, training_s: float) -> float:
    """Warm up linearly, then decay to 0 along a cosine over the training time."""
    share = max(0.0, elapsed_s) / training_s
    return min(1.0, share / 0.05) * (1 + math.cos(math.pi * min(1.0, share))) / 2


def train_alike(
    method: BundleMethod,
    train_files: Sequence[str],
    folder: Path,
    minutes: float,
    timepoints: int,
    progress: Callable[[str], None],
    **settings: object,
) -> BundleMethod:
    """Train the model of ``method`` for a given time.

    Args:
        method: the model, with the settings of its inference.
        train_files: train.yaml and overlays.
        folder: output folder of the training, which resumes from checkpoints in it. Its parent folder caches the
            prepared series for all trainings.
        minutes: training time, excluding the preparation of series; training stops at the end of the epoch in which it
            has passed.
        timepoints: K, for networks with a fixed number of timepoints.
        progress: called with a line per epoch.
        **settings: further settings of the training.

    Returns:
        ``method`` with the trained weights.
    """
    parser = ConfigParser()
    parser.read_config(list(train_files))
    start = math.inf

    def learning_rate_factor(_: int) -> float:
        return _learning_rate_factor(time.perf_counter() - start, 60 * minutes)

    schedule = {
        "_target_": "torch.optim.lr_scheduler.LambdaLR",
        "optimizer": "@optimizer",
        "lr_lambda": learning_rate_factor,
    }
    fixed_timepoints = {} if parser.get("timepoints") is None else {"timepoints": timepoints}
    folders = {"output_dir": literal(folder), "train#dataset#cache_dir": literal(folder.parent / "series")}
    settings = {"lr_scheduler": schedule, **fixed_timepoints, **folders, **settings, "max_minutes": minutes}
    for name, value in {**_SETTINGS, **settings}.items():
        parser[name] = value
    parser.parse()
    parser.get_parsed_content("initialize")
    dataset = parser.get_parsed_content("train#dataset")
    for index in range(len(dataset)):  # fills the cache
        dataset[index]
    trainer = parser.get_parsed_content("train#trainer")

    def report_epoch(engine: Engine) -> None:
        seconds, loss = time.perf_counter() - start, engine.state.output[0]["loss"].item()
        progress(f"{folder.name}: {engine.state.iteration} iterations, {seconds:.0f} s, loss {loss:.4f}")

    trainer.add_event_handler(Events.EPOCH_COMPLETED, report_epoch)
    start = time.perf_counter()
    parser.get_parsed_content("run")
    weights = folder / "weights.pt"
    with atomic_file(weights) as path:
        torch.save(parser.get_parsed_content("network").state_dict(), path)
    return replace(method, weights=str(weights), settings={**method.settings, **fixed_timepoints})


@dataclass(frozen=True)
class Trainings:
    """Trainings of the models of one experiment.

    Args:
        folder: each training has a folder in it.
        minutes: time of each training.
        progress: called with a line per epoch.
    """

    folder: Path
    minutes: float
    progress: Callable[[str], None]

    def train(
        self,
        name: str,
        overlays: Sequence[str],
        train_overlays: Sequence[str],
        timepoints: int,
        model: Mapping[str, object] | None = None,
        **settings: object,
    ) -> BundleMethod:
        """Train a model of the bundle by `train_alike`.

        Args:
            name: name of the training's folder.
            overlays: overlays of inference.yaml.
            train_overlays: overlays of train.yaml.
            timepoints: as in `train_alike`.
            model: settings of both inference and training.
            **settings: further settings of the training.

        Returns:
            A method that applies the trained network without refinement.
        """
        model = model or {}
        method = bundle_method(None, *overlays, "effort/no_refine", **model)
        files, folder = config_files("train", train_overlays), self.folder / name
        return train_alike(method, files, folder, self.minutes, timepoints, self.progress, **model, **settings)


def refined(trained: BundleMethod, overlays: Sequence[str]) -> BundleMethod:
    """Add the refinement to a method returned by `Trainings.train`."""
    return replace(trained, config_files=config_files("inference", overlays))
