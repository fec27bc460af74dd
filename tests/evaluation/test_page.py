"""`report.html` is self-contained and contains the data of the registration, as read without a browser."""

import base64
import json
import re
import zlib
from html.parser import HTMLParser

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from groupmorph_monai.data.series import Frame
from groupmorph_monai.evaluation.page import LARGEST_BYTES, Motion, page_grid, write_page
from groupmorph_monai.evaluation.report import plain
from groupmorph_monai.evaluation.verdict import judge
from groupmorph_monai.space.grid import Grid
from groupmorph_monai.space.transforms import AffineTransform, DenseTransform

# Axes to the left, to the feet and anterior, not oblique.
AFFINE = np.array([[-2.0, 0, 0, 10], [0, 0, 1.5, -8], [0, -3.0, 0, 40], [0, 0, 0, 1]])
SIZE = (12, 6, 10)
NASTY = "</script><b>t2 & co.nii.gz"


class Page(HTMLParser):
    """Parse scripts by their ids, text by its element, and the resources that the page would load."""

    def __init__(self, text):
        super().__init__()
        self.scripts, self.loads, self.stack, self.text = {}, [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.loads += [
            value for name, value in attributes.items() if name in ("src", "href", "srcset", "data", "action")
        ]
        if tag not in ("meta", "input"):
            self.stack.append((tag, attributes.get("id")))

    def handle_endtag(self, tag):
        assert self.stack.pop()[0] == tag

    def handle_data(self, data):
        tag, name = self.stack[-1] if self.stack else (None, None)
        if tag == "script" and name:
            self.scripts[name] = json.loads(data)
        elif tag not in ("script", "style"):
            self.text.append(data)


def volumes(seed):
    return np.random.default_rng(seed).random((3, *SIZE), np.float32) * 100


def covered(**written):
    everywhere = np.ones(written["native"].shape, bool)
    return {**written, "native_covered": everywhere, "warped_covered": everywhere.copy()}


def small_page(path, written, affine, transforms=None, lengths=None):
    """Make the page of an empty report."""
    count, *shape = written["native"].shape
    report = {
        "verdict": judge({}), "metrics": {}, "timepoints": ["t"] * count, "times_s": None, "settings": {},
        "seconds": {},
        "peak_memory_gb": 1.0,
    }  # fmt: skip
    lengths = np.ones((count, 9)) if lengths is None else lengths
    transforms = transforms or [AffineTransform(torch.eye(4))] * count
    write_page(path, report, written, Grid(shape, affine), Motion(transforms, lengths))
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Make a page, and return its text and its input."""
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, 3] = torch.tensor([4.0, -2.0, 1.0])
    written = covered(native=volumes(0), warped=volumes(1))
    report = {
        "verdict": judge({"folding_percent": 0.5, "relative_agreement": [1.0, 0.5, 0.9]}),
        "metrics": {"folding_percent": 0.5, "nmi_before": 0.25, "rmse_after": float("nan")},
        "timepoints": ["t0.nii.gz", "t1.nii.gz", NASTY],
        "series_description": "<i>dyn</i>",
        "times_s": (0.0, 60.0, 130.0),
        "settings": {"model": "M"},
        "seconds": {"register": 3.25},
        "peak_memory_gb": 1.5,
    }
    path = tmp_path_factory.mktemp("page") / "report.html"
    transforms = [AffineTransform(torch.eye(4)), AffineTransform(matrix), AffineTransform(torch.eye(4))]
    std = [Frame(np.full(SIZE, 0.5 * k, np.float32), AFFINE, "std") for k in (1, 2, 4)]
    lengths = np.array([[0.0] * 101, np.arange(101.0), [2.0] * 101])
    write_page(path, report, written, Grid(SIZE, AFFINE), Motion(transforms, lengths, std))
    return path.read_text(encoding="utf-8"), report, written


@pytest.fixture(scope="module")
def page(made):
    return Page(made[0])


def decoded(page, name):
    volume = page.scripts["volumes"]["volumes"][name]
    data = np.frombuffer(zlib.decompress(base64.b64decode(volume["data"])), "<u2" if "window" in volume else np.uint8)
    return data.reshape(-1, *volume["shape"]).astype(float), volume


def signal(page, name):
    """Decode the signal in the unit of the scans; NaN where the page marks it as unknown."""
    words, volume = decoded(page, name)
    return np.where(words, volume["low"] + (words - 1) / 65534 * (volume["high"] - volume["low"]), np.nan)


def canonical(array):
    turned = nib.as_closest_canonical(nib.Nifti1Image(np.moveaxis(array, 0, -1), AFFINE))
    return np.moveaxis(turned.get_fdata(), -1, 0), np.array(turned.header.get_zooms()[:3])


def test_the_page_loads_nothing(made, page):
    text = made[0]
    assert page.loads == [] and page.stack == []
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"url\(|@import|\bfetch\(|XMLHttpRequest|\bimport\b\s*[({\"']", text)
    assert "default-src 'none'" in text


def test_before_and_after_are_the_images_on_one_scale(made, page):
    _, _, written = made
    window = np.percentile(written["native"], (0.1, 99.9))
    for name, volumes in (("before", "native"), ("after", "warped")):
        expected, spacing = canonical(written[volumes])
        np.testing.assert_allclose(signal(page, name), expected, atol=0.51 * 100 / 65534)
        np.testing.assert_allclose(page.scripts["volumes"]["spacing_mm"], spacing)
        np.testing.assert_allclose(page.scripts["volumes"]["volumes"][name]["window"], window, rtol=1e-5)


def test_a_small_bright_lesion_keeps_its_signal(tmp_path):
    truth = [200, 600, 900, 1000, 950, 900]
    native = np.random.default_rng(0).uniform(0, 200, (6, 16, 16, 12)).astype(np.float32)
    native[:, 8, 8, 6] = truth  # 0.033 % of the voxels
    page = small_page(tmp_path / "report.html", covered(native=native, warped=native), np.eye(4))
    for name in ("before", "after"):
        np.testing.assert_allclose(signal(page, name)[:, 8, 8, 6], truth, atol=0.01)
        assert page.scripts["volumes"]["volumes"][name]["window"][1] < 220


def test_voxels_outside_the_field_of_view_have_no_signal(tmp_path):
    written = covered(native=volumes(0), warped=volumes(1))
    written["native_covered"][1, :4] = False
    written["warped_covered"][2, 3, 2, 1] = False
    page = small_page(tmp_path / "report.html", written, np.eye(4))
    assert np.array_equal(np.isnan(signal(page, "before")), ~written["native_covered"])
    assert np.array_equal(np.isnan(signal(page, "after")), ~written["warped_covered"])


def test_numbers_that_are_not_known_are_null(tmp_path):
    written = covered(native=volumes(0), warped=volumes(1))
    lengths = np.array([[0.0] * 4, [np.nan] * 4, [np.inf] * 4])
    page = small_page(tmp_path / "report.html", written, np.eye(4), lengths=lengths)
    assert page.scripts["volumes"]["motion_mm"] == [[0.0] * 5, [None] * 5, [None] * 5]
    assert "nan" not in "".join(page.text)


def oblique_affines():
    """Generate ten random sets of axes; for half of them nibabel's closest orientation differs from
    `Grid.canonical`."""
    chosen = {True: [], False: []}
    for rotation in Rotation.random(200, random_state=0).as_matrix():
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = rotation * [1.0, 1.5, 2.0], [5, -7, 11]
        grid = Grid((4, 5, 6), affine)
        to_canonical = np.linalg.inv(grid.canonical().affine.numpy()) @ affine
        orientations = [nib.orientations.io_orientation(a) for a in (affine, to_canonical)]
        chosen[np.array_equal(*orientations)].append(affine)
    assert min(map(len, chosen.values())) >= 5
    return chosen[True][:5] + chosen[False][:5]


def test_a_voxel_of_an_oblique_scan_lies_where_the_page_says(tmp_path):
    for affine in oblique_affines():
        native = np.zeros((2, 4, 5, 6), np.float32)
        native[:, 3, 1, 4] = 100
        page = small_page(tmp_path / "report.html", covered(native=native, warped=native), affine)
        values, grid = signal(page, "after")[0], page_grid(Grid((4, 5, 6), affine), 2)
        assert values.shape == tuple(grid.shape) and values.max() == pytest.approx(100)
        place = grid.affine.numpy() @ [*np.unravel_index(values.argmax(), values.shape), 1]
        np.testing.assert_allclose(place, affine @ [3, 1, 4, 1], atol=1e-5)


def test_displacement_lies_along_the_axes_of_the_page(page):
    values, volume = decoded(page, "displacement")
    field = ((values - 128) * volume["scale"]).reshape(3, 3, -1)
    np.testing.assert_allclose(field[1], np.broadcast_to([[4], [-2], [1]], field[1].shape), atol=volume["scale"])
    assert np.all(field[[0, 2]] == 0)


def test_a_callers_mixed_precision_does_not_change_the_page(tmp_path):
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3] += 0.05 * torch.tensor([[1, 2, 0, 50], [0, -1, 1, 60], [2, 0, 1, -70]])
    written, transforms = covered(native=volumes(0), warped=volumes(1)), [AffineTransform(matrix)] * 3
    pages = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            pages.append(small_page(tmp_path / "report.html", written, np.eye(4), transforms))
    for values in zip(*(decoded(page, "displacement")[0] for page in pages)):
        np.testing.assert_array_equal(*values)


def test_volume_changes_lie_where_they_are(tmp_path):
    """A displacement of 0.01 x^2 to the right has the Jacobian determinant 1 + 0.02 x."""
    grid = Grid(SIZE, AFFINE)
    right = 0.01 * grid.points()[..., 0] ** 2
    voxels = torch.einsum("d,ijk->dijk", torch.linalg.inv(grid.affine)[:3, 0], right).float()
    transforms = [AffineTransform(torch.eye(4)), DenseTransform(voxels, None, grid)]
    page = small_page(
        tmp_path / "report.html", covered(native=volumes(0)[:2], warped=volumes(1)[:2]), AFFINE, transforms
    )
    values, volume = decoded(page, "jacobian")
    inner = (values / 255 * volume["high"])[:, 1:-1]  # differences at the border are one-sided
    expected = 1 + 0.02 * np.arange(-12.0, 11.0, 2).reshape(6, 2).mean(axis=1)[1:-1]
    np.testing.assert_allclose(inner[1], np.broadcast_to(expected[:, None, None], (4, 5, 3)), atol=0.51 * 3 / 255)
    np.testing.assert_allclose(inner[0], 1, atol=0.51 * 3 / 255)


def test_the_standard_deviation_is_the_mean_of_what_was_written(page):
    values, volume = decoded(page, "std")
    np.testing.assert_allclose(values.mean(axis=(1, 2, 3)) / 255 * volume["high"], [0.5, 1, 2], atol=0.01)


def test_the_numbers_equal_the_report(made, page):
    assert page.scripts["report"] == json.loads(json.dumps(plain(made[1])))
    text = "".join(page.text)
    for shown in ("folding_percent", "0.25", "3.25", "relative_agreement", "1, 0.5, 0.9"):
        assert shown in text
    assert page.scripts["volumes"]["motion_mm"][1] == [5, 25, 50, 75, 95]
    assert page.scripts["volumes"]["times_s"] == [0, 60, 130]


def test_the_verdict_stands_at_the_head_with_its_reasons(made):
    text, report, _ = made
    head = text[text.index("<header>") : text.index("</header>")]
    assert report["verdict"]["verdict"] == "FAIL" and 'class="badge FAIL"' in head
    assert re.findall("<li>(.*?)</li>", head) == report["verdict"]["reasons"]


def test_file_names_are_data(made, page):
    assert "<b>t2" not in made[0] and "<i>dyn" not in made[0]
    assert page.scripts["volumes"]["timepoints"][2] == f"2: {NASTY}, 130 s"
    assert page.scripts["report"]["timepoints"][2] == NASTY


@pytest.mark.parametrize("timepoints", [2, 6, 40])
@pytest.mark.parametrize("shape", [(40, 30, 8), (384, 384, 60), (371, 371, 180)])
def test_the_file_stays_small_whatever_the_scans(shape, timepoints):
    grid = Grid(shape, np.diag([1.0, 1.0, 2.0, 1.0]))
    small = page_grid(grid, timepoints)
    raw = timepoints * np.prod(small.shape) * (4 + 5 / 8)  # two volumes in 16 bits; motion, Jacobian, deviation
    assert raw * 4 / 3 < 0.98 * LARGEST_BYTES
    np.testing.assert_allclose(small.extent_mm, grid.extent_mm)
    np.testing.assert_allclose(small.corners(0.5), grid.corners(0.5))
    if np.prod(shape) * timepoints < 4e6:
        assert small.matches(grid)
