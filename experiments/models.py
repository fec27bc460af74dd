"""Comparison of all models of the bundle, and of extensions of GroupMorph, trained for the same short time."""

import argparse

from groupmorph_monai.apps.configs import overlay_names
from groupmorph_monai.apps.suites.suite import table_suite
from groupmorph_monai.benchmarks.cases import synthetic_cases
from groupmorph_monai.benchmarks.compare import compare

from .suite import add_seeds_and_minutes, trainings
from .trained_alike import refined

_EXTENSIONS = ("modes/bidirectional", "posteriors/smoothed", "priors/temporal")  # of GroupMorph
# Small volumes allow more iterations in a short time.
_SMALL = {"phantom_size_voxels": [48, 48, 48], "patch_size_voxels": [32, 32, 32], "symmetry_weight": 0.0}


def _measure(args: argparse.Namespace) -> list[dict]:
    cases, methods = synthetic_cases(args.seeds), {}
    timepoints = len(cases[0]["image"])
    models = [name for name in overlay_names() if name.startswith("models/")]
    with trainings(args) as training:
        for overlay in (None, *models, *_EXTENSIONS):
            name, overlays = overlay or "GroupMorph-set", [overlay] if overlay else []
            train_overlays = ("data/phantom_small", *overlays)
            methods[name] = training.train(name.replace("/", " "), overlays, train_overlays, timepoints, **_SMALL)
            if overlay not in _EXTENSIONS:  # these change the training, and with it only the start of a refinement
                methods[f"{name}, refined"] = refined(methods[name], overlays)
        return compare(cases, methods, training.progress)


MODELS = table_suite(
    "models",
    "all models of the bundle, and extensions of GroupMorph, trained for the same time",
    add_seeds_and_minutes,
    _measure,
)
