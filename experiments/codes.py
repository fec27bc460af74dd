"""Classification and transport of cardiac motion by deformation codes, after Krebs et al. 2018, Section 3,
"Deformation Encoding"."""

import argparse
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from groupmorph_monai.apps.suites.suite import table_suite
from groupmorph_monai.benchmarks.compare import BundleMethod
from groupmorph_monai.benchmarks.figures import save_figure
from groupmorph_monai.data.phantoms.hearts import HEART_MOTIONS, make_heart
from groupmorph_monai.errors import InputError
from groupmorph_monai.space.field import DisplacementField
from groupmorph_monai.space.warping import compose
from groupmorph_monai.workflow.codes import CodeInferer, DonorCodes
from groupmorph_monai.workflow.field_inferer import FieldInferer

from .suite import add_minutes, trainings

if TYPE_CHECKING:
    from sklearn.cross_decomposition import CCA

_COLUMNS = ("motion, voxels", "registered, voxels", "motion to transport, voxels", "transported, voxels")


def canonical_components(values: np.ndarray, classes: np.ndarray, number: int) -> "CCA":
    """Fit the most discriminative components by canonical correlation analysis.

    Args:
        values: ``(N, C)``.
        classes: class of each row, ``(N,)``, from 0.
        number: number of components.

    Returns:
        The fitted model; its ``transform`` projects values.
    """
    from sklearn.cross_decomposition import CCA

    return CCA(n_components=number).fit(values, np.eye(classes.max() + 1)[classes])


def predict_classes(values: np.ndarray, classes: np.ndarray, folds: int = 10) -> np.ndarray:
    """Classify by a linear support vector machine on canonical components, with cross-validation of both.

    Args:
        values: ``(N, C)``.
        classes: class of each row, ``(N,)``, from 0.
        folds: number of folds.

    Returns:
        Predicted classes, ``(N,)``.
    """
    from sklearn.model_selection import StratifiedKFold
    from sklearn.svm import SVC

    predicted = np.empty_like(classes)
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=0).split(values, classes):
        projection = canonical_components(values[train], classes[train], min(classes.max(), values.shape[1]))
        machine = SVC(kernel="linear").fit(projection.transform(values[train]), classes[train])
        predicted[test] = machine.predict(projection.transform(values[test]))
    return predicted


def _contraction(inferer: FieldInferer, network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Register a pair of volumes, at rest and contracted.

    Returns:
        Displacement from the contracted volume to the volume at rest, ``(3, *S)``, voxels, and the codes ``(2 C,)``.
    """
    with torch.no_grad():
        registration = inferer(images, network)
    to_rest = DisplacementField.on_voxels(registration["ddf"][:, :1])
    from_contracted = DisplacementField.on_voxels(registration["inverse_ddf"][:, 1:])
    return compose(to_rest, from_contracted).values[0, 0].cpu(), registration["z_mean"].flatten().cpu()


def codes(
    method: BundleMethod,
    seeds: Sequence[int],
    folder: str | Path,
    size: Sequence[int] = (48, 48, 32),
    progress: Callable[[str], None] = print,
) -> list[dict]:
    """Evaluate registration, transport and classification of the contraction by codes.

    Args:
        method: a model whose z is a code.
        seeds: random seeds of the hearts, for every kind of motion.
        folder: where to save ``codes.png``, the codes projected on their first two canonical components.
        size: size of the volumes, in voxels.
        progress: called with a line per kind of motion.

    Returns:
        A row per kind of motion, and their means: mean error of the contraction inside the heart, in voxels, before and
        after registration, and before and after its transport from another heart of the same kind; and the percentage
        of hearts whose kind is classified correctly from their codes.
    """
    inferer, network, scaled = method.parts()
    kinds, rows, heart_codes, classes = list(HEART_MOTIONS), [], [], []
    for number, kind in enumerate(kinds):
        errors = []
        for index, seed in enumerate(seeds):
            # Seeds differ between kinds, and between a heart and its donor.
            heart_seed, donor_seed = 10_000 * (number + 1) + seed, 10_000 * (number + 1) + seeds[index - 1]
            donor = make_heart(donor_seed, kind, size=size)
            heart = make_heart(heart_seed, kind, size=size)
            target = make_heart(heart_seed, kind, motion_seed=donor_seed, size=size)
            ddf, code = _contraction(inferer, network, scaled(heart["image"]))
            transport = CodeInferer(inferer.alignment, inferer.transformation, DonorCodes(scaled(donor["image"])))
            transported, _ = _contraction(transport, network, scaled(heart["image"][:1].expand(2, -1, -1, -1)))
            pairs = ((ddf * 0, heart), (ddf, heart), (transported * 0, target), (transported, target))
            errors.append([float((u - h["motion"]).norm(dim=0)[h["heart"] > 0].mean()) for u, h in pairs])
            heart_codes.append(code.numpy())
            classes.append(number)
        mean_errors = np.mean(errors, axis=0).tolist()
        rows.append({"motion": kind, "hearts": len(errors), **dict(zip(_COLUMNS, mean_errors))})
        motion, registered, target_motion, transported = mean_errors
        progress(
            f"{kind}: motion {motion:.2f} voxels, error {registered:.2f} registered; motion to transport "
            f"{target_motion:.2f}, error {transported:.2f} transported"
        )
    values, classes = np.stack(heart_codes), np.array(classes)
    correct = predict_classes(values, classes) == classes
    for number, row in enumerate(rows):
        row["classified correctly, %"] = 100 * float(correct[classes == number].mean())
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0] if name not in ("motion", "hearts")}
    _save_scatter(canonical_components(values, classes, 2).transform(values), classes, Path(folder) / "codes.png")
    return [*rows, {"motion": "all", "hearts": len(classes), **means}]


def _save_scatter(points: np.ndarray, classes: np.ndarray, file: Path) -> None:
    figure = Figure(figsize=(6, 5), dpi=110, layout="constrained")
    axis = figure.subplots()
    for number, kind in enumerate(HEART_MOTIONS):
        axis.scatter(*points[classes == number].T, s=14, label=kind)
    axis.set(xlabel="first canonical component", ylabel="second canonical component")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    save_figure(figure, file)


def _measure(args: argparse.Namespace) -> list[dict]:
    if find_spec("sklearn") is None:  # fail before the training, not after it
        raise InputError("codes: expected scikit-learn, got none; pip install '.[bench]' in the clone")
    base = "models/krebs_cvae"
    # The velocity on every second voxel and lattices for the hearts' size allow four times as many iterations.
    model = {
        "network_def#decoder_channels": [16, 16],
        "network_def#lattice_voxels": [6, 6, 4],
        "velocity_smoothing_voxels": 1.5,
        "velocity_kernel_voxels": 7,
    }
    with trainings(args) as training:
        method = training.train("hearts", [base], (base, "data/hearts"), 2, model)
        return codes(method, range(20), args.output, progress=training.progress)


CODES = table_suite(
    "codes",
    "classification and transport of motion by the codes of models/krebs_cvae, trained on beating hearts",
    add_minutes,
    _measure,
)
