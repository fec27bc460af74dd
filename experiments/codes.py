"""What codes of deformations tell: whose motion it is, and the same motion in another heart (Krebs et al. 2018,
Section 3, "Deformation Encoding", in kind)."""

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
from groupmorph_monai.space.grid import compose
from groupmorph_monai.workflow.codes import CodeInferer, CodesOf
from groupmorph_monai.workflow.inferers import FieldInferer

from .suite import add_minutes, trainings
from .trained_alike import train_model

if TYPE_CHECKING:
    from sklearn.cross_decomposition import CCA

__all__ = ["CODES", "canonical_components", "codes", "predict_classes"]


def canonical_components(values: np.ndarray, classes: np.ndarray, number: int) -> "CCA":
    """The ``number`` most discriminative components of ``values`` ``(N, C)`` by canonical correlation with their
    ``classes`` ``(N,)``, from 0; its ``transform`` projects."""
    from sklearn.cross_decomposition import CCA

    return CCA(n_components=number).fit(values, np.eye(classes.max() + 1)[classes])


def predict_classes(values: np.ndarray, classes: np.ndarray, folds: int = 10) -> np.ndarray:
    """Class ``(N,)`` of each of ``values`` ``(N, C)`` by a linear support vector machine on their canonical components,
    both fitted to the other folds alone."""
    from sklearn.model_selection import StratifiedKFold
    from sklearn.svm import SVC

    predicted = np.empty_like(classes)
    for seen, left_out in StratifiedKFold(folds, shuffle=True, random_state=0).split(values, classes):
        projection = canonical_components(values[seen], classes[seen], min(classes.max(), values.shape[1]))
        machine = SVC(kernel="linear").fit(projection.transform(values[seen]), classes[seen])
        predicted[left_out] = machine.predict(projection.transform(values[left_out]))
    return predicted


def _contraction(inferer: FieldInferer, network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Displacement of the contracted volume's voxels to the volume at rest, ``(3, *S)``, and the codes ``(2 C,)``."""
    with torch.no_grad():
        found = inferer(images, network)
    ddf = compose(found["ddf"][:, :1], found["inverse_ddf"][:, 1:])
    return ddf[0, 0].cpu(), found["z_mean"].flatten().cpu()


def codes(
    method: BundleMethod,
    seeds: Sequence[int],
    folder: str | Path,
    size: Sequence[int] = (48, 48, 32),
    progress: Callable[[str], None] = print,
) -> list[dict]:
    """A row for each kind of motion, and one for all: errors of the contraction within the heart, in voxels, where it
    is registered and where it is transported from another heart to this one at rest; and the share of hearts whose
    kind their codes tell. ``codes.png`` in ``folder`` shows the codes on their first two canonical components.

    Args:
        method: a model whose z is a code.
        seeds: of hearts, for every kind of motion.
        size: of the volumes.
    """
    inferer, network, scaled = method.parts()
    kinds, rows, found, classes = list(HEART_MOTIONS), [], [], []
    for number, kind in enumerate(kinds):
        errors = []
        for place, seed in enumerate(seeds):
            # No two hearts of the experiment are one, and no donor is the heart that it gives to.
            own, other = 10_000 * (number + 1) + seed, 10_000 * (number + 1) + seeds[place - 1]
            donor = make_heart(other, kind, size=size)
            heart = make_heart(own, kind, size=size)
            wanted = make_heart(own, kind, motion_seed=other, size=size)
            ddf, code = _contraction(inferer, network, scaled(heart["image"]))
            carrying = CodeInferer(inferer.alignment, inferer.transformation, CodesOf(scaled(donor["image"])))
            transported, _ = _contraction(carrying, network, scaled(heart["image"][:1].expand(2, -1, -1, -1)))
            pairs = ((ddf * 0, heart), (ddf, heart), (transported * 0, wanted), (transported, wanted))
            errors.append([float((u - h["motion"]).norm(dim=0)[h["heart"] > 0].mean()) for u, h in pairs])
            found.append(code.numpy())
            classes.append(number)
        before, registered, moved, transported = np.mean(errors, axis=0)
        rows.append(
            {
                "motion": kind,
                "hearts": len(errors),
                "motion, voxels": float(before),
                "registered, voxels": float(registered),
                "motion to transport, voxels": float(moved),
                "transported, voxels": float(transported),
            }
        )
        progress(
            f"{kind}: {before:.2f} voxels, registered {registered:.2f}; {moved:.2f}, transported {transported:.2f}"
        )
    values, classes = np.stack(found), np.array(classes)
    right = predict_classes(values, classes) == classes
    for number, row in enumerate(rows):
        row["kind told, %"] = 100 * float(right[classes == number].mean())
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0] if name not in ("motion", "hearts")}
    _picture(canonical_components(values, classes, 2).transform(values), classes, Path(folder) / "codes.png")
    return [*rows, {"motion": "all", "hearts": len(classes), **means}]


def _picture(places: np.ndarray, classes: np.ndarray, file: Path) -> None:
    figure = Figure(figsize=(6, 5), dpi=110, layout="constrained")
    axis = figure.subplots()
    for number, kind in enumerate(HEART_MOTIONS):
        axis.scatter(*places[classes == number].T, s=14, label=kind)
    axis.set(xlabel="first canonical component", ylabel="second canonical component")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    save_figure(figure, file)


def _measure(args: argparse.Namespace) -> list[dict]:
    if find_spec("sklearn") is None:  # before a training, which takes its minutes
        raise InputError("codes: expected scikit-learn, found none; pip install 'groupmorph-monai[bench]'")
    base = "models/krebs_cvae"
    # The velocity on every second voxel, and lattices that suit the hearts' size: four times as many iterations.
    model = {
        "network_def#decoder_channels": [16, 16],
        "network_def#lattice_voxels": [6, 6, 4],
        "velocity_smoothing_voxels": 1.5,
        "velocity_kernel_voxels": 7,
    }
    with trainings(args) as (scratch, tell):
        method = train_model(scratch / "hearts", args.minutes, [base], (base, "data/hearts"), 2, tell, model)
        return codes(method, range(20), args.output, progress=tell)


CODES = table_suite(
    "codes", "what the codes of models/krebs_cvae, trained on beating hearts, tell of a motion", add_minutes, _measure
)
