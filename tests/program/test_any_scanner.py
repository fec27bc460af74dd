"""For any scanner, the written fields map every point of tissue to its true position."""

import numpy as np
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from scanners import COARSEST_MM, FINEST_MM, ORIENTATIONS, STORAGES, Protocol, Registered, examine, register, save

MEAN_MM, AT_95_PERCENT_MM = 0.5, 1.5


@st.composite
def protocols(draw, most_scans, most_voxels):
    """Generate a `Protocol` and the value of ``--reference``. Continuous values come from the seed, as hypothesis would
    vary them in small steps."""
    number, storage = draw(st.integers(2, most_scans)), draw(st.sampled_from(STORAGES))
    # The volumes of a 4D file have one grid and one header, which cannot follow the patient.
    grids, follows = (1, False) if storage == "4D" else (number, draw(st.booleans()))
    reference = draw(st.sampled_from(["mean", *map(str, range(number))]))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    orientations = np.resize(rng.integers(len(ORIENTATIONS), size=grids), number).tolist()
    spacings = np.resize(np.exp(rng.uniform(*np.log([FINEST_MM, COARSEST_MM]), (grids, 3))), (number, 3)).tolist()
    return Protocol(seed, orientations, spacings, follows, storage, most_voxels=most_voxels), reference


def check(tmp_path_factory, protocol, reference):
    folder = tmp_path_factory.mktemp("examination")
    examination = examine(protocol)
    files = save(examination.scans, folder / "scans", protocol.storage)
    registered = Registered(register(files, folder / "out", "--reference", reference))
    errors = registered.errors_mm(examination.points)
    mean, at_95_percent = errors.mean(), np.percentile(errors, 95)
    print(f"mean {mean:.3f} mm, 95 % {at_95_percent:.3f} mm: {protocol}, {reference}")
    assert mean < MEAN_MM and at_95_percent < AT_95_PERCENT_MM


# A registration takes seconds, too long to shrink failing examples.
FIXED = {"derandomize": True, "deadline": None, "database": None, "phases": [Phase.explicit, Phase.generate]}
FOLLOWED = Protocol(
    4, orientations=(7, 30), spacings_mm=((2, 2, 5), (3, 2.5, 3)), follows=True, storage="mha", most_voxels=40**3
)


@settings(max_examples=2, **FIXED)
@example(examination=(FOLLOWED, "1"))
@given(examination=protocols(most_scans=3, most_voxels=40**3))
def test_points_are_found_whatever_the_scanners(tmp_path_factory, examination):
    check(tmp_path_factory, *examination)


@pytest.mark.slow
@settings(max_examples=12, **FIXED)
@given(examination=protocols(most_scans=5, most_voxels=64**3))
def test_points_are_found_whatever_the_scanners_of_usual_size(tmp_path_factory, examination):
    check(tmp_path_factory, *examination)
