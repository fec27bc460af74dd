"""The fields of two registrations are never mixed, wherever a run that replaces one by the other is killed."""

import os
import shutil

import numpy as np
from faults import at_every_call, kill
from written_series import SIZE, affine_of

from groupmorph_monai.data.writing.applying import apply_field_to_points, combine_fields
from groupmorph_monai.data.writing.fields import write_field
from groupmorph_monai.data.writing.replacement import put_in_place
from groupmorph_monai.errors import InputError
from groupmorph_monai.space.grid import Grid


def write_translations(folder, translations_mm):
    """Write a result whose scan k is translated by ``translations_mm[k]`` along the first axis."""
    folder.mkdir()
    for k, translation in enumerate(translations_mm):
        for name, sign in (("ddf", 1), ("inverse_ddf", -1)):
            displacement = np.zeros((3, *SIZE), np.float32)
            displacement[0] = sign * translation
            write_field(displacement, Grid(SIZE, affine_of()), folder / f"{name}_{k:02d}.nii.gz")
    (folder / "report.json").write_text("{}", encoding="utf-8")


def motion_mm(result, map_path):
    """Combine the fields of two scans, and return the displacement of a point by the combined field."""
    combine_fields(result, 0, 1, map_path)
    return apply_field_to_points(map_path, np.zeros((1, 3)))[0, 0]


def test_after_a_kill_fields_are_of_one_registration_or_refused(tmp_path):
    old, new, result, staging = (tmp_path / name for name in ("old", "new", "result", "staging"))
    write_translations(old, (1, 3))  # 2 mm from scan to scan
    write_translations(new, (5, 10))  # 5 mm; 9 or -2 mm if mixed

    def prepare():
        for source, copy in ((old, result), (new, staging)):
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(source, copy)
        (result / "notes").mkdir()  # so that files are moved one by one

    prepare()
    outcomes = []
    for _ in at_every_call(lambda: put_in_place(staging, result, os.listdir(new)), kill, step=2):
        try:
            outcomes.append(round(motion_mm(result, tmp_path / "target" / "map.nii.gz"), 3))
        except InputError as error:
            outcomes.append(str(error))
        prepare()
    assert {*outcomes} == {2, 5, f"{result}: a stopped run was replacing this result; run register again"}
