"""Compare methods on the same series in one run: errors against known motion, lesion volumes, folding, time, memory."""

import multiprocessing
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from monai.bundle import ConfigParser
from torch import Tensor
from torch.utils.data import default_collate

from ..data.preprocessing.transforms import ScalePercentilesd
from ..data.series import Series
from ..evaluation.measure import MeasureRegistrationd
from ..evaluation.metrics import folding_percent, inverse_consistency_mm, landmark_distances_mm
from ..space.field import DisplacementField
from ..space.transforms import ComposedTransform, Transform, jacobian_determinant
from ..space.warping import invert, warp
from ..workflow.batches import prepare_series
from ..workflow.inferers import RegistrationInferer
from ..workflow.memory import keep_freed_memory, peak_memory_gb
from ..workflow.parsed_config import parsed_config
from ..workflow.registration import ComposeTransformsd, timepoint_transforms
from ..workflow.weights import load_weights
from .tables import mean_row

_INVERSE_STEPS = 40  # number of fixed-point steps to the inverse of a displacement, twice the default

Case = Mapping[str, Any]  # a series with known motion, see `compare`
Fields = Tensor | tuple[Tensor, Tensor]
Method = Callable[[Tensor], Fields]
T = TypeVar("T")


@dataclass
class BundleMethod:
    """The bundle's inferer as a method: ``(K, *S)`` in any units to ``ddf`` and ``inverse_ddf``, ``(K, 3, *S)``.

    Args:
        config_files: inference.yaml and overlays.
        weights: weights of the network.
        settings: values that replace those of the files.
    """

    config_files: Sequence[str]
    weights: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def _parse(self) -> tuple[ConfigParser, torch.nn.Module, torch.device]:
        keep_freed_memory()
        parser = parsed_config(self.config_files, self.settings)
        device = parser.get_parsed_content("device")
        network = parser.get_parsed_content("network_def").eval().to(device)
        load_weights(network, self.weights, device)
        return parser, network, device

    def parts(self) -> tuple[RegistrationInferer, torch.nn.Module, Callable[[Tensor], Tensor]]:
        """Return inferer, network, and a function that scales ``(K, *S)`` to ``(1, K, *S)`` on the config's device."""
        parser, network, device = self._parse()
        transforms = parser.get_parsed_content("preprocessing").transforms
        scale = next(transform for transform in transforms if isinstance(transform, ScalePercentilesd))

        def scaled(images: Tensor) -> Tensor:
            return torch.as_tensor(scale({"image": images})["image"])[None].float().to(device)

        return parser.get_parsed_content("inferer"), network, scaled

    def prepare(self) -> Method:
        inferer, network, scaled = self.parts()

        def register(images: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                result = inferer(scaled(images), network)
            return result["ddf"][0].cpu(), result["inverse_ddf"][0].cpu()

        # Warm up, so that initialisation of libraries does not count as time of the method.
        register(torch.rand(self.settings.get("timepoints", 2), 32, 32, 32))
        return register

    def prepare_whole(self) -> Callable[[Series], list[Transform]]:
        """Prepare the complete registration of a series, including working grid and initial alignment.

        Returns:
            A function that maps a series to the transforms from the common space to each timepoint.
        """
        register = self._prepare_item()
        return lambda series: register(series)["pred"]["transforms"]

    def prepare_item(self) -> Callable[[Series], dict[str, Any]]:
        """Prepare the same registration as `prepare_whole`, with more results.

        Returns:
            A function that maps a series to the input of the bundle's writer: the item with its registration in
            ``pred``, and ``metrics``.
        """
        register, measure_item = self._prepare_item(), MeasureRegistrationd()
        return lambda series: measure_item(register(series))

    def _prepare_item(self) -> Callable[[Series], dict[str, Any]]:
        parser, network, device = self._parse()
        preprocess, inferer = (parser.get_parsed_content(name) for name in ("preprocessing", "inferer"))
        compose = ComposeTransformsd()

        def register(series: Series) -> dict[str, Any]:
            item = preprocess({"image": series})
            image, _, _, options = prepare_series(default_collate([item]), device)
            with torch.no_grad():
                pred = inferer.fields(image.float(), network, **options)
            first = {name: value[0] if isinstance(value, Tensor) else value for name, value in pred.items()}
            return compose({**item, "pred": first})

        return register


def _run(method: Method | BundleMethod, images: Tensor) -> tuple[list[np.ndarray], float, float]:
    register = method.prepare() if isinstance(method, BundleMethod) else method
    started = time.perf_counter()
    fields = register(images)
    seconds = time.perf_counter() - started
    return [u.numpy() for u in (fields if isinstance(fields, tuple) else (fields,))], seconds, peak_memory_gb()


def in_new_process(function: Callable[..., T], *args: object) -> T:
    """Call a function in a separate process, whose peak memory is that of the function alone."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def measure(method: Method | BundleMethod, images: Tensor) -> tuple[list[Tensor], float, float]:
    """Measure fields, seconds and peak memory (1e9 bytes) of one method, in a separate process for a correct peak."""
    fields, seconds, peak_gb = in_new_process(_run, method, images)
    return [torch.from_numpy(u) for u in fields], seconds, peak_gb


def before_and_after_mm(landmarks_mm: Tensor, transforms: Sequence[Transform]) -> tuple[Tensor, Tensor]:
    """Compute landmark distances ``(pairs, P)`` in mm before and after registration.

    Args:
        landmarks_mm: ``(K, P, 3)``, RAS.
        transforms: result of `BundleMethod.prepare_whole`.
    """
    identity = [ComposedTransform()] * len(transforms)
    return landmark_distances_mm(landmarks_mm, identity), landmark_distances_mm(landmarks_mm, transforms)


def lesion_volume_error_percent(ddf: Tensor, lesions: Tensor) -> float:
    """Compute the mean over lesions and ordered pairs i != j of ``|V_ij - V_j| / V_j`` in percent, where V_j is the
    volume of the lesion in timepoint j and V_ij the volume of its mask in timepoint i after mapping to timepoint j.

    Args:
        ddf: ``(K, 3, *S)``, common space to timepoint, voxels.
        lesions: ``(K, *S)``, 0 or the number of the lesion from 1.
    """
    determinant = jacobian_determinant(ddf)
    errors = []
    for number in range(1, int(lesions.max()) + 1):
        masks = (lesions == number).float()
        true = masks.flatten(1).sum(dim=1)
        if not (true > 0).all():
            continue
        common = warp(masks[None], DisplacementField.on_voxels(ddf[None]))[0]
        mapped = torch.einsum("in,jn->ij", common.flatten(1), determinant.flatten(1))
        relative = (mapped / true[None] - 1).abs()
        errors.append(relative[~torch.eye(len(true), dtype=torch.bool)].mean())
    return 100 * float(torch.stack(errors).mean()) if errors else float("nan")


def _inverse(ddf: Tensor) -> DisplacementField:
    return invert(DisplacementField.on_voxels(ddf[None]), _INVERSE_STEPS)


def _accuracy(case: Case, ddf: Tensor, own_inverse: Tensor | None = None) -> dict[str, float]:
    field, voxels = DisplacementField.on_voxels(ddf[None]), torch.eye(4)
    error = landmark_distances_mm(case["landmarks"], timepoint_transforms(field, _inverse(ddf), voxels))
    row = {
        "mean error, voxels": float(error.mean()),
        "95 %, voxels": float(np.percentile(error.numpy(), 95)),
    }
    if "lesion_mask" in case:
        lesions = case["lesion_mask"]
        i, j, k = case["landmarks"][0].round().long().unbind(dim=1)
        inside = lesions[0][i, j, k] > 0
        row["inside lesions, voxels"] = float(error[:, inside].mean())
        row["lesion volume error, %"] = lesion_volume_error_percent(ddf, lesions)
    row["folds, %"] = folding_percent(field)
    if own_inverse is not None:
        row["inverse consistency, voxels"] = inverse_consistency_mm(
            field, DisplacementField.on_voxels(own_inverse[None]), voxels
        )
    return row


def compare(
    cases: Iterable[Case], methods: Mapping[str, Method | BundleMethod], progress: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Compare methods: one row per method with means over all cases. The first rows are the unregistered series and, if
    known, the true motion, which shows the error of the measurement.

    Args:
        cases: each ``{"name", "image" (K, *S), "landmarks" (K, P, 3), ...}``, optionally with ``lesion_mask``
            ``(K, *S)``, and with ``motion`` ``(K, 3, *S)`` from timepoint to common space.
        methods: by name; each returns ``ddf``, or ``ddf`` and ``inverse_ddf``, whose consistency is then measured.
        progress: called with a line for every result.
    """
    rows: dict[str, list[dict[str, float]]] = {}
    for case in cases:
        identity = torch.zeros(len(case["image"]), 3, *case["image"].shape[1:])
        rows.setdefault("unregistered", []).append(_accuracy(case, identity))
        if "motion" in case:
            rows.setdefault("true motion", []).append(_accuracy(case, _inverse(case["motion"]).values[0]))
        for name, method in methods.items():
            fields, seconds, peak_gb = measure(method, case["image"])
            row = {**_accuracy(case, *fields), "seconds": seconds, "peak memory, GB": peak_gb}
            rows.setdefault(name, []).append(row)
            progress(f"{case['name']}, {name}: {row['mean error, voxels']:.3f} voxels, {seconds:.1f} s")
    return [{"method": name, **mean_row(results)} for name, results in rows.items()]
