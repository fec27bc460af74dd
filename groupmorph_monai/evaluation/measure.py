"""Metrics for MONAI's engines: computed per series, averaged over an epoch, and shown in TensorBoard."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Average
from monai.transforms import Transform
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from ..data.storage import IN_MEMORY, Storage
from ..workflow.registration import lattice_fields
from .metrics import accuracy, overlap, similarity, warp_labels


class WarpLabelsd(Transform):
    """Warp the label maps of an item, if it has any, to the common space and add them to ``pred`` as ``labels``,
    ``(K, *S)``. Label maps are on the grid of the network's input, before the initial alignment is composed into the
    fields."""

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        if "labels" not in data:
            return dict(data)
        labels = torch.as_tensor(data["labels"]).to(data["pred"]["ddf"].device)
        return {**data, "pred": {**data["pred"], "labels": warp_labels(labels, data["pred"]["ddf"])}}


class MeasureSimilarityd(Transform):
    """Add the image similarity before and after registration to the ``metrics`` of an evaluated item. `SeriesWriter`
    computes it on the native images instead."""

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        pred = data["pred"]
        covered = ((torch.as_tensor(data["coverage"]).to(pred["covered"]) > 0.5) & pred["covered"]).all(dim=0)
        return {**data, "metrics": {**data.get("metrics", {}), **similarity(data["image"], pred["warped"], covered)}}


class MeasureRegistrationd(Transform):
    """Add to the ``metrics`` of an evaluated item, a dict of numbers, those of its fields, landmarks, and the labels
    warped by `WarpLabelsd`.

    Args:
        loss: negative ELBO, evaluated at the posterior mean as ``metrics["loss"]``; None omits it.
        storage: where the fields are kept.
    """

    def __init__(self, loss: Callable[[Mapping[str, Tensor]], Tensor] | None = None, storage: Storage = IN_MEMORY):
        self.loss, self.storage = loss, storage

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        pred, landmarks = data["pred"], data.get("landmarks")
        metrics = data.get("metrics", {}) | accuracy(
            *lattice_fields(pred, data["image"].shape[1:]),
            torch.as_tensor(data["affine"]).cpu(),
            pred["transforms"],
            None if landmarks is None else torch.as_tensor(landmarks),
            self.storage.chunks,
        )
        if "labels" in pred:
            metrics |= overlap(pred["labels"], data["affine"])
        if self.loss is not None:
            metrics["loss"] = float(self.loss({k: v[None] for k, v in pred.items() if isinstance(v, Tensor)}))
        return {**data, "metrics": metrics}


class _NanAverage(Average):
    """Average that skips NaN; NaN if no values remain."""

    def update(self, output: float) -> None:
        if not math.isnan(output):
            super().update(output)

    def compute(self) -> float:
        return super().compute() if self.num_examples else math.nan


def average_of(name: str) -> Average:
    """Average one of the ``metrics`` over the series of an epoch that have it; NaN if none has it."""
    return _NanAverage(output_transform=lambda output: float(output[0]["metrics"].get(name, float("nan"))))


class ValidationPicture:
    """Show the middle slice of the first validation series in TensorBoard: mean and standard deviation over K, before
    and after registration.

    Args:
        log_dir: TensorBoard log directory.
    """

    def __init__(self, log_dir: str):
        self.log_dir = log_dir

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=1), self)

    def __call__(self, engine: Engine) -> None:
        item = engine.state.output[0]  # type: ignore[index]
        before, after = (
            x[..., x.shape[-1] // 2].cpu().float().numpy() for x in (item["image"], item["pred"]["warped"])
        )
        spread = max(float(before.std(0).max()), 1e-6)
        rows = [np.concatenate([x.mean(0), x.std(0) / spread], axis=0) for x in (before, after)]
        picture = np.clip(np.concatenate(rows, axis=1), 0, 1).T
        with SummaryWriter(self.log_dir) as writer:
            writer.add_image(
                "mean and spread over timepoints, before (top) and after", picture[None], engine.state.epoch
            )
