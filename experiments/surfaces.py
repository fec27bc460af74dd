"""Benefit of label maps in training, after VoxelMorph-diff, Sections 3.4 and 4.3. Registration needs no labels."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from groupmorph_monai.apps.option_types import path
from groupmorph_monai.apps.suites.suite import table_suite
from groupmorph_monai.benchmarks.compare import BundleMethod
from groupmorph_monai.benchmarks.tables import mean_row
from groupmorph_monai.data.preprocessing.transforms import LoadSeriesd
from groupmorph_monai.data.writing.output_folder import atomic_folder
from groupmorph_monai.errors import InputError
from groupmorph_monai.evaluation.metrics import overlap, warp_labels
from groupmorph_monai.workflow.literal import literal

from .suite import add_minutes, trainings
from .trained_alike import HALF_THE_FILTERS

_TEST_SHARE, _TRAINING_PAIRS, _TEST_PAIRS = 0.25, 200, 20


def pair_subjects(dataset: str | Path, folder: Path) -> list[dict]:
    """Draw random ordered pairs of different subjects for training and testing, each at most once.

    Args:
        dataset: folder with ``images`` and ``labels``, in which the files of a subject have the same name, like a task
            of the Medical Segmentation Decathlon.
        folder: where to write ``dataset.json`` with the training pairs.

    Returns:
        Test pairs, from the last quarter of the subjects.

    Raises:
        InputError: If there are fewer than two subjects for training or for testing.
    """
    images, labels = Path(dataset).resolve() / "images", Path(dataset).resolve() / "labels"
    names = sorted(file.name for file in images.glob("*.nii*") if (labels / file.name).is_file())
    num_training = len(names) - round(_TEST_SHARE * len(names))
    if min(num_training, len(names) - num_training) < 2:
        raise InputError(
            f"dataset: expected 6 subjects or more in {dataset}, got {len(names)}; give each subject's files the same "
            "name in images/ and labels/"
        )
    rng = np.random.default_rng(0)

    def pairs(subjects: Sequence[str], count: int) -> list[dict]:
        possible = list(permutations(subjects, 2))
        chosen = rng.choice(possible, min(count, len(possible)), replace=False)
        return [
            {key: [str(d / n) for n in pair] for key, d in (("image", images), ("labels", labels))} for pair in chosen
        ]

    training = pairs(names[:num_training], _TRAINING_PAIRS)
    with atomic_folder(folder) as partial:
        (partial / "dataset.json").write_text(
            json.dumps({"training": training, "validation": training[:1]}), encoding="utf-8"
        )
    return pairs(names[num_training:], _TEST_PAIRS)


def _overlap(labels: Tensor, affine: Tensor) -> dict[str, float]:
    metrics = {"": overlap(labels > 0, affine), "each label, ": overlap(labels, affine)}
    return {
        f"{prefix}{name}": values[key]
        for prefix, values in metrics.items()
        for name, key in (("Dice", "dice"), ("surface distance, mm", "surface_distance_mm"))
    }


def compare_overlap(
    pairs: Sequence[Mapping], methods: Mapping[str, BundleMethod], progress: Callable[[str], None] = print
) -> list[dict]:
    """Measure how well each method aligns the labelled structures of two subjects.

    Args:
        pairs: test pairs returned by `pair_subjects`.
        methods: methods by name.
        progress: called with a line per method.

    Returns:
        A row without registration and one per method, with means over pairs: Dice coefficient and surface distance of
        the union of all labels, as in training with `modes/surfaces`, and their means over labels.
    """
    results: dict[str, list[dict]] = {"unregistered": []}
    registers = {name: method.prepare() for name, method in methods.items()}
    for pair in pairs:
        item = LoadSeriesd()(pair)
        results["unregistered"].append(_overlap(item["labels"], item["affine"]))
        for name, register in registers.items():
            ddf, _ = register(torch.as_tensor(item["image"]))
            results.setdefault(name, []).append(_overlap(warp_labels(item["labels"], ddf), item["affine"]))
    rows = [{"method": name, **mean_row(rows)} for name, rows in results.items()]
    for row in rows:
        progress(f"{row['method']}: Dice {row['Dice']:.3f}, surface distance {row['surface distance, mm']:.3f} mm")
    return rows


def _add_options(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--dataset",
        required=True,
        type=path,
        metavar="DIR",
        help="folder with images/ and labels/, in which the files of a subject have the same name",
    )
    add_minutes(p)


def _measure(args: argparse.Namespace) -> list[dict]:
    base, methods = "models/voxelmorph_diff", {}
    with trainings(args) as training:
        folder = training.folder / "pairs"
        pairs, dataset = pair_subjects(args.dataset, folder), {"dataset_dir": literal(folder)}
        for name, modes in (("images alone", []), ("images and surfaces", ["modes/surfaces"])):
            overlays = (base, "data/subjects", *modes)
            methods[name] = training.train(name, [base], overlays, 2, HALF_THE_FILTERS, **dataset)
        return compare_overlap(pairs, methods, training.progress)


SURFACES = table_suite(
    "surfaces",
    "models/voxelmorph_diff trained on pairs of your own subjects (--dataset), with modes/surfaces or without labels",
    _add_options,
    _measure,
)
