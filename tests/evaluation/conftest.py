import numpy as np
import pytest
import torch

from groupmorph_monai.data.writing.output_folder import release_all
from groupmorph_monai.evaluation.page import Motion, write_page
from groupmorph_monai.evaluation.region import region_report
from groupmorph_monai.evaluation.verdict import judge
from groupmorph_monai.space.grid import Grid
from groupmorph_monai.space.transforms import AffineTransform

SIZE = (16, 12, 8)
BRIGHT = (200, 900, 600)  # a few voxels, much brighter than the initial window
QUALITY = {"overlap_percent": 90.0, "relative_agreement": 0.7, "folding_percent": 2.0}  # PASS, LOOK and FAIL


@pytest.fixture(autouse=True)
def released():
    yield
    release_all()


@pytest.fixture(scope="module")
def shown_page(tmp_path_factory):
    """Write a page of three scans whose pixels tell the slice, the timepoint, and before from after."""
    i, j, k = np.meshgrid(*map(np.arange, SIZE), indexing="ij")
    # Slice n is 20 n; timepoints rise by 15, after registration by 30; the corner to the right, front and head is 255.
    offset = 20.0 * k
    before, after = (np.stack([offset + rise * t for t in range(3)]) for rise in (15, 30))
    for volumes in (before, after):
        volumes[:, -2:, -2:, -2:] = 255
        volumes[:, 0, 0, 0] = 0
    before[:, 2, 2, 2] = BRIGHT
    after[:, 1:4, 1:4, 2] = np.array(BRIGHT)[:, None, None]
    written = {"native": before, "warped": after}
    written |= {name: np.ones((3, *SIZE), bool) for name in ("native_covered", "warped_covered")}
    written["native_covered"][1, 2, 2, 2] = False
    # Two slices of a box: as drawn, and after registration shifted to the left by one voxel.
    written["region"] = np.zeros((2, *SIZE), bool)
    written["region"][0, 9:12, 4:7, 3:5] = written["region"][1, 10:13, 4:7, 3:5] = True
    lengths = np.ones((3, 9))
    lengths[1] = np.nan
    report = {
        "verdict": judge(QUALITY), "metrics": {"rmse_before": 5.0}, "timepoints": ["t0", "t1", "t2"], "times_s": None,
        "settings": {}, "seconds": {}, "peak_memory_gb": 1.0,
        "region": region_report(["a", "b", "b/lesion.nii"], 2, written),
    }  # fmt: skip
    transforms = [AffineTransform(torch.diag(torch.tensor([larger, 1, 1, 1]))) for larger in (1.0, 2.0, 1.0)]
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(path, report, written, Grid(SIZE, np.eye(4)), Motion(transforms, lengths))
    return path
