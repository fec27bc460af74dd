"""Series that are processed a few scans at a time, from files to files."""

from argparse import Namespace

import nibabel
import numpy as np
import pytest
from json_files import read_json

import groupmorph_monai as gm
from groupmorph_monai.apps.suites import memory as module
from groupmorph_monai.apps.suites.suite import bundle_method
from groupmorph_monai.data.phantoms.phantom import make_phantom
from groupmorph_monai.data.series import Frame
from groupmorph_monai.data.writing.nifti import write_image

pytestmark = pytest.mark.slow


def test_a_few_scans_at_a_time_give_what_all_at_once_give(tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    for k, volume in enumerate(make_phantom(3002, (48, 56, 40), 8)["image"].numpy()):
        write_image(Frame(volume, np.eye(4), "phantom"), scans / f"t{k}.nii.gz")
    results = {}
    for name, scans_at_once in (("parts", 2), ("whole", None)):
        results[name] = gm.register(str(scans), scans_at_once=scans_at_once)
        results[name].to_folder(tmp_path / name)
    whole, parts = results["whole"], results["parts"]
    assert np.abs(whole.fields).max() > 0.5
    difference = np.abs(parts.fields - whole.fields)  # voxels of 1 mm
    assert difference.max() < 1e-3
    for file in sorted((tmp_path / "whole").glob("*.nii.gz")):
        ours, theirs = (nibabel.load(tmp_path / name / file.name).get_fdata() for name in ("whole", "parts"))
        # Only one of the two may count a voxel at the border of a field of view.
        assert (np.abs(theirs - ours) > 0.01 * np.abs(ours).max()).mean() < 1e-3, file.name
    ours, theirs = (read_json(tmp_path / name / "report.json") for name in ("whole", "parts"))
    assert ours["files"] == theirs["files"] and ours["verdict"]["verdict"] == theirs["verdict"]["verdict"]
    assert (ours["scans_at_once"], theirs["scans_at_once"]) == (None, 2)


def test_memory_does_not_grow_with_the_number_of_scans(monkeypatch):
    """Runs are in separate processes, as the peak memory of a process never falls."""
    # The initial alignment holds 16 scans, however many there are.
    method = bundle_method(None, "effort/fast", initial_alignment="none")
    monkeypatch.setattr(module, "bundle_method", lambda weights: method)
    size, peaks = (40, 36, 32), {}
    for number in (32, 64):  # which the verdict measures in groups of 16
        (row,) = module.memory(Namespace(weights=None), [(number, size, 2)])
        peaks[number] = row["peak memory, GB"]
    of_a_scan = 87 * 40 * 36 * 32 / 1e9  # where all are in memory
    # Peaks of equal runs differ by up to 6 scans; if all scans were in memory, 32 more would need 32.
    assert peaks[64] - peaks[32] < 12 * of_a_scan
