"""What label maps add to the images while training (VoxelMorph-diff, Sections 3.4 and 4.3, in kind): every model's
registration alone needs no labels."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from groupmorph_monai.apps.option_types import path
from groupmorph_monai.apps.suites.suite import table_suite
from groupmorph_monai.benchmarks.compare import BundleMethod
from groupmorph_monai.data.preprocessing.transforms import LoadSeriesd
from groupmorph_monai.data.writing.output_folder import all_or_nothing
from groupmorph_monai.errors import InputError
from groupmorph_monai.evaluation.metrics import overlap, warp_labels
from groupmorph_monai.workflow.literal import literal

from .suite import add_minutes, trainings
from .trained_alike import HALF_THE_FILTERS, train_model

__all__ = ["SURFACES", "compare_overlap", "pair_subjects"]

_TEST_SHARE, _TRAINING_PAIRS, _TEST_PAIRS = 0.25, 200, 20


def pair_subjects(dataset: str | Path, folder: Path) -> list[dict]:
    """Random pairs of different subjects: those to train on go into ``dataset.json`` in ``folder``, those to test on,
    of the last quarter of the subjects, are returned.

    Args:
        dataset: folder with ``images`` and ``labels``, in which the files of a subject have one name, as those of the
            Medical Segmentation Decathlon.
    """
    images, labels = Path(dataset).resolve() / "images", Path(dataset).resolve() / "labels"
    names = sorted(file.name for file in images.glob("*.nii*") if (labels / file.name).is_file())
    number = len(names) - round(_TEST_SHARE * len(names))
    if min(number, len(names) - number) < 2:
        raise InputError(
            f"dataset: expected 6 subjects or more in {dataset}, with files of one name in images/ and labels/; found "
            f"{len(names)}"
        )
    rng = np.random.default_rng(0)

    def pairs(subjects: Sequence[str], count: int) -> list[dict]:
        chosen = [rng.choice(subjects, 2, replace=False) for _ in range(count)]
        return [
            {key: [str(d / n) for n in pair] for key, d in (("image", images), ("labels", labels))} for pair in chosen
        ]

    training = pairs(names[:number], _TRAINING_PAIRS)
    with all_or_nothing(folder) as partial:
        (partial / "dataset.json").write_text(json.dumps({"training": training, "validation": training[:1]}))
    return pairs(names[number:], _TEST_PAIRS)


def _overlap(labels: Tensor, affine: Tensor) -> dict[str, float]:
    kinds = {"": overlap(labels > 0, affine), "each label, ": overlap(labels, affine)}
    return {
        f"{kind}{name}": row[key]
        for kind, row in kinds.items()
        for name, key in (("Dice", "dice"), ("surface distance, mm", "surface_distance_mm"))
    }


def compare_overlap(
    pairs: Sequence[Mapping], methods: Mapping[str, BundleMethod], progress: Callable[[str], None] = print
) -> list[dict]:
    """A row a method, and one without any: overlap and surface distance of both subjects' structures, all labels
    together, as `modes/surfaces` trains with them, and the mean of each by itself; means over pairs."""
    found: dict[str, list[dict]] = {"unregistered": []}
    registers = {name: method.prepare() for name, method in methods.items()}
    for pair in pairs:
        item = LoadSeriesd()(pair)
        found["unregistered"].append(_overlap(item["labels"], item["affine"]))
        for name, register in registers.items():
            ddf, _ = register(torch.as_tensor(item["image"]))
            found.setdefault(name, []).append(_overlap(warp_labels(item["labels"], ddf), item["affine"]))
    rows = [
        {"method": name, **{key: float(np.mean([row[key] for row in rows])) for key in rows[0]}}
        for name, rows in found.items()
    ]
    for row in rows:
        progress(f"{row['method']}: Dice {row['Dice']:.3f}, surfaces {row['surface distance, mm']:.3f} mm apart")
    return rows


def _add_options(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--dataset",
        required=True,
        type=path,
        metavar="DIR",
        help="subjects: a folder with images/ and labels/, whose files have the same names",
    )
    add_minutes(p)


def _measure(args: argparse.Namespace) -> list[dict]:
    base, methods = "models/voxelmorph_diff", {}
    with trainings(args) as (scratch, tell):
        folder = scratch / "pairs"
        pairs = pair_subjects(args.dataset, folder)
        for name, modes in (("images alone", []), ("images and surfaces", ["modes/surfaces"])):
            overlays = (base, "data/subjects", *modes)
            methods[name] = train_model(
                scratch / name,
                args.minutes,
                [base],
                overlays,
                2,
                tell,
                HALF_THE_FILTERS,
                dataset_dir=literal(folder),
            )
        return compare_overlap(pairs, methods, tell)


SURFACES = table_suite(
    "surfaces",
    "models/voxelmorph_diff trained on pairs of your own subjects (--dataset), with modes/surfaces and without labels",
    _add_options,
    _measure,
)
