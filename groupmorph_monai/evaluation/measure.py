"""Metrics where MONAI's engines want them: measured for each series, averaged over an epoch, drawn for TensorBoard."""

import math
from collections.abc import Callable, Hashable, Mapping

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Average
from monai.transforms import Transform
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from ..data.storage import IN_MEMORY, Storage
from .metrics import accuracy, overlap, similarity, warp_labels

__all__ = ["MeasureRegistrationd", "ValidationPicture", "WarpLabelsd", "average_of"]


class WarpLabelsd(Transform):
    """Add ``labels`` ``(K, *S)``, in the common space, to the ``pred`` of an item that has label maps. They lie where
    the images do that were registered: before an initial alignment is composed into the fields."""

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        if "labels" not in data:
            return dict(data)
        labels = torch.as_tensor(data["labels"]).to(data["pred"]["ddf"].device)
        return {**data, "pred": {**data["pred"], "labels": warp_labels(labels, data["pred"]["ddf"])}}


class MeasureRegistrationd(Transform):
    """Add ``metrics``, a dict of numbers, to an evaluated item: of images, fields, landmarks, and the labels that
    `WarpLabelsd` gives.

    Args:
        loss: negative ELBO, of which ``metrics["loss"]`` is the value at the posterior's mean; left out where none.
        similarity: measure that of the images too. `SeriesWriter` does so on the native ones.
        storage: of the fields.
    """

    def __init__(
        self,
        loss: Callable[[Mapping[str, Tensor]], Tensor] | None = None,
        similarity: bool = True,
        storage: Storage = IN_MEMORY,
    ):
        self.loss, self.similarity, self.storage = loss, similarity, storage

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        pred, landmarks = data["pred"], data.get("landmarks")
        metrics = {}
        if self.similarity:
            seen = ((torch.as_tensor(data["coverage"]).to(pred["seen"]) > 0.5) & pred["seen"]).all(dim=0)
            metrics = similarity(data["image"], pred["warped"], seen)
        metrics |= accuracy(
            pred["ddf"],
            pred["inverse_ddf"],
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


class _AverageOfKnown(Average):
    """Of the numbers that are none of NaN; NaN where there are none."""

    def update(self, output: float) -> None:
        if not math.isnan(output):
            super().update(output)

    def compute(self) -> float:
        return super().compute() if self.num_examples else math.nan


def average_of(name: str) -> Average:
    """Average over an epoch's series, evaluated one at a time, of one of the ``metrics``, over those that have it; NaN
    where none has."""
    return _AverageOfKnown(output_transform=lambda output: float(output[0]["metrics"].get(name, float("nan"))))


class ValidationPicture:
    """Send a slice of the first validation series, before and after, to TensorBoard: mean and spread over K.

    Args:
        log_dir: of TensorBoard.
    """

    def __init__(self, log_dir: str):
        self.log_dir = log_dir

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=1), self)

    def __call__(self, engine: Engine) -> None:
        item = engine.state.output[0]
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
