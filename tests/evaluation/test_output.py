"""A report warns if scans became less similar, and a killed registration leaves one complete result."""

import logging
import math
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from faults import KILLED, at_every_call, kill
from json_files import read_json
from scipy.ndimage import gaussian_filter

from groupmorph_monai.data.series import Frame, Series
from groupmorph_monai.data.writing.output_folder import release_all
from groupmorph_monai.data.writing.products import Products
from groupmorph_monai.errors import InputError
from groupmorph_monai.evaluation import SeriesWriter, ShowMeand
from groupmorph_monai.evaluation.assessment import Assessor, _warn_if_less_similar, _warn_of_duplicates
from groupmorph_monai.space.grid import Grid
from groupmorph_monai.space.transforms import AffineTransform, DenseTransform


@pytest.mark.parametrize("after, falls", [(0.70, False), (0.696, False), (0.69, True), (math.nan, False)])
def test_a_similarity_that_falls_is_a_warning(after, falls, caplog):
    with caplog.at_level(logging.WARNING):
        warnings = _warn_if_less_similar({"nmi_before": 0.7, "nmi_after": after})
    assert bool(warnings) == falls == ("less similar than before" in caplog.text)
    assert warnings == [] or "NMI 0.7000 before, 0.6900 after" in warnings[0]


def test_a_scan_that_is_listed_twice_is_a_warning(caplog):
    volumes = np.random.default_rng(0).random((2, 4, 5, 6))
    frames = [Frame(v, np.eye(4), name) for v, name in zip(volumes[[0, 1, 0]], ("a", "b", "copy of a"))]
    assert _warn_of_duplicates(frames) == ["timepoints 0 and 2 have the same voxels: is a scan listed twice?"]
    assert "copy of a" in caplog.text
    assert _warn_of_duplicates([frames[0], Frame(volumes[0], np.diag([1.0, 1, 2, 1]), "elsewhere")]) == []


@pytest.mark.parametrize("overlay", ["modes/sample", "modes/transport"])
def test_one_image_that_is_deformed_becomes_less_alike_on_purpose(overlay, caplog):
    texture = gaussian_filter(np.random.default_rng(0).standard_normal((16, 15, 14)), 1.5).astype(np.float32)
    series = Series((Frame(texture, np.eye(4), "t0"), Frame(texture, np.eye(4), "t1")))
    shifts = [AffineTransform(torch.from_numpy(np.eye(4) + np.eye(4, k=3) * n)) for n in (0, 2)]
    native, warped = np.stack([texture, texture]), np.stack([texture, np.roll(texture, -2, axis=0)])
    covered = np.arange(16)[:, None, None] < np.full(texture.shape, 14)
    output = {"pred": {"transforms": shifts}, "metrics": {"folding_percent": 0.0, "inverse_consistency_mm": 0.0}}
    on_purpose, by_mistake = (
        Assessor(series, overlays=[*overlays]).assess(output, {}, native, warped, covered)
        for overlays in ([overlay], [])
    )
    assert on_purpose.verdict["verdict"] == "PASS" and on_purpose.warnings == []
    assert on_purpose.verdict["checks"].keys() == {
        "folding_percent", "implausible_volume_percent", "bending_mm", "inverse_consistency_mm"
    }  # fmt: skip
    assert by_mistake.verdict["verdict"] == "FAIL" and "less similar" in by_mistake.warnings[0]
    assert by_mistake.warnings[1] == "timepoints 0 and 1 have the same voxels: is a scan listed twice?"


def test_a_writer_refuses_a_folder_with_an_input_before_it_makes_anything(tmp_path):
    scan, mask = tmp_path / "in" / "t0.nii.gz", tmp_path / "mask" / "m.nii.gz"
    for file in (scan, mask):
        file.parent.mkdir()
        file.write_text("x", encoding="utf-8")
    series = SimpleNamespace(frames=[SimpleNamespace(path=str(scan), data=np.zeros(1))])
    for folder, inputs in ((tmp_path / "in", ()), (tmp_path / "mask", [str(mask)]), (tmp_path / "mask", [[str(mask)]])):
        with pytest.raises(InputError, match="expected an output folder that holds no input"):
            SeriesWriter(series, str(folder), inputs=[None, *inputs])
        assert len(list(folder.iterdir())) == 1


def test_servers_show_the_mean_of_warped_images():
    warped, metrics = torch.rand(3, 4, 5, 6), {"folding_percent": 0.5}
    shown = ShowMeand()({"pred": {"warped": warped}, "metrics": metrics})
    torch.testing.assert_close(shown["pred"], warped.mean(dim=0, keepdim=True))
    assert shown["result"] == {"metrics": metrics}
    fields = {"pred": {"lattice_ddf": warped}, "metrics": metrics}
    assert ShowMeand()(fields) == fields


def register(folder, timepoints, shift, std_mm=None, **options):
    """Write a registration of tiny scans that shifts all of them, or each, by ``shift`` voxels."""
    rng, grid = np.random.default_rng(0), Grid((6, 5, 4), np.eye(4))
    frames = tuple(Frame(rng.random(grid.shape, np.float32), np.eye(4), f"t{k}") for k in range(timepoints))
    fields = [torch.full((3, *grid.shape), voxels) for voxels in np.broadcast_to(shift, timepoints)]
    transforms = [DenseTransform(ddf, -ddf, grid) for ddf in fields]
    output = {"pred": {"transforms": transforms, "std_mm": std_mm}, "metrics": {}}
    writer = SeriesWriter(Series(frames), str(folder), **options)
    writer.started = 0.0
    writer(SimpleNamespace(state=SimpleNamespace(output=[output], batch=[{"affine": torch.eye(4)}])))
    release_all()


def test_the_report_has_the_median_uncertainty_and_the_region_on_the_home_scan(tmp_path, no_pictures):
    region = np.zeros((6, 5, 4), np.uint8)
    region[:2] = 1
    nib.save(nib.Nifti1Image(region, np.eye(4)), tmp_path / "region.nii")
    std = torch.linspace(0, 1, 120).square().view(6, 5, 4)
    products = Products(region=str(tmp_path / "region.nii"))
    register(tmp_path / "out", 2, (2.0, 0.0), [std, 4 * std], home=1, products=products)
    report = read_json(tmp_path / "out" / "report.json")
    assert report["region"]["voxels"] == {"before": 40, "after": 40}
    assert report["verdict"]["checks"]["uncertainty_mm"]["value"] == pytest.approx([0.25, 1], abs=1e-3)


def result_in(folder):
    """Read the contents of the images and the files that the report lists."""
    files = {path.name: path.read_bytes() for path in folder.glob("*.nii.gz")}
    return files, read_json(folder / "report.json")["files"]


@pytest.mark.slow
def test_a_registration_that_is_killed_anywhere_leaves_the_earlier_one_or_its_own(tmp_path, no_pictures):
    out = tmp_path / "out"
    register(tmp_path / "new", 2, 1.0)
    register(out, 3, 0.5)
    new, old = result_in(tmp_path / "new"), result_in(out)
    assert len(old[0]) == 9 and len(new[0]) == 7 and new[1] == sorted(new[0])

    ends = []
    for end in at_every_call(lambda: register(out, 2, 1.0), kill):
        ends.append(end)
        assert result_in(out) in (old, new), len(ends)
        if result_in(out) == new:
            register(out, 3, 0.5)
    assert len(ends) > 40 and {*ends} == {0, KILLED}
    register(out, 2, 1.0)
    assert result_in(out) == new
    assert [path.name for path in (*out.iterdir(), *tmp_path.iterdir()) if path.name.startswith(".")] == []
