"""An output folder that contains an input, also through a link, is refused."""

import json
import os
from pathlib import Path

import pytest
from faults import at_every_call, kill

from groupmorph_monai.data.writing.earlier_result import check_result_folder, listed_result
from groupmorph_monai.data.writing.output_folder import (
    atomic_folder,
    check_contains_no_input,
)
from groupmorph_monai.data.writing.products import Exports, Products
from groupmorph_monai.errors import InputError


def test_an_output_folder_with_an_input_in_it_is_refused(tmp_path):
    scans, out = tmp_path / "scans", tmp_path / "out"
    for folder in (scans, out):
        folder.mkdir()
    scan = scans / "t0.nii.gz"
    scan.write_text("scan", encoding="utf-8")
    check_contains_no_input(out, [scan, tmp_path / "absent"])
    check_contains_no_input(tmp_path / "not made yet", [scan])
    (tmp_path / "by link").symlink_to(scans)
    (tmp_path / "link.nii.gz").symlink_to(scan)
    relative = Path(os.path.relpath(scans))
    for folder in (scans, tmp_path / "by link", relative, scans / ".." / "scans"):
        for file in (scan, relative / "t0.nii.gz", tmp_path / "by link" / "t0.nii.gz", tmp_path / "link.nii.gz", scans):
            with pytest.raises(InputError, match="expected an output folder that holds no input"):
                check_contains_no_input(folder, [file])
    for make in (os.link, os.symlink):
        make(scan, out / "mean.nii.gz")
        with pytest.raises(InputError, match="got one that holds"):
            check_contains_no_input(out, [scan])
        (out / "mean.nii.gz").unlink()


def test_inputs_at_any_depth_of_a_folder_to_be_removed_are_detected(tmp_path):
    image = tmp_path / "dicom" / "series" / "1.dcm"
    image.parent.mkdir(parents=True)
    image.write_text("scan", encoding="utf-8")
    (tmp_path / "link").symlink_to(tmp_path / "dicom")
    for path in (tmp_path / "dicom", image.parent, image, tmp_path / "link", tmp_path / "link" / "series" / "1.dcm"):
        check_contains_no_input(tmp_path, [path])  # a folder of the user is kept
        with pytest.raises(InputError, match="expected an output folder that holds no input"):
            check_contains_no_input(tmp_path, [path], ["mean.nii.gz", "dicom"])


@pytest.mark.parametrize("name", ["ddf_01.nii.gz", "inverse_ddf_00.nii.gz", "transform_01.h5", "warped.seq.nrrd"])
def test_a_file_of_the_user_with_the_name_of_an_output_is_not_replaced(name, tmp_path):
    products = Products(exports=Exports(itk_transforms=True, sequence=True))
    (tmp_path / name).touch()
    check_result_folder(tmp_path, [], Products(fields="none").files(2, std=False))
    with pytest.raises(InputError, match=f"{name}: expected no file that a registration would replace"):
        check_result_folder(tmp_path, [], products.files(2, std=False))
    (tmp_path / "report.json").write_text(json.dumps({"files": [name]}), encoding="utf-8")
    check_result_folder(tmp_path, [], products.files(2, std=False))


@pytest.mark.parametrize("name", ["notes.txt", "segmentation.dcm", "DICOMDIR"])
def test_a_file_of_the_user_in_the_dicom_folder_of_a_result_is_not_removed(name, tmp_path):
    (tmp_path / "dicom").mkdir()
    (tmp_path / "report.json").write_text(json.dumps({"files": ["dicom"]}), encoding="utf-8")
    for own in ("00_0000.dcm", "11_0123.dcm", "motion.dcm", "jacobian_02.dcm", "ktrans_before.dcm", "std_mm_11.dcm"):
        (tmp_path / "dicom" / own).touch()
    (tmp_path / "dicom" / ".DS_Store").touch()
    check_result_folder(tmp_path, [])
    (tmp_path / "dicom" / name).touch()
    with pytest.raises(InputError, match=f"dicom/{name}: expected only files of the earlier result"):
        check_result_folder(tmp_path, [])


@pytest.mark.parametrize("replaced", [True, False])
def test_inputs_in_the_result_of_a_killed_run_are_detected_too(tmp_path, replaced):
    """Its report was removed, which listed the files and folders to replace, such as the folder of DICOM."""
    folder = tmp_path / "out"

    def write_with_dicom(dicom, stale=()):
        with atomic_folder(folder, stale) as staging:
            for n in range(3 if dicom else 0):
                (staging / "dicom").mkdir(exist_ok=True)
                (staging / "dicom" / f"{n}.dcm").write_text("image", encoding="utf-8")
            (staging / "report.json").write_text(json.dumps({"files": ["dicom"] if dicom else []}), encoding="utf-8")

    def prepare():
        write_with_dicom(True)
        (folder / "mine").mkdir(exist_ok=True)  # so that files are moved in

    prepare()
    refused = 0
    for end in at_every_call(lambda: write_with_dicom(replaced, ["dicom"]), kill):
        if end and (folder / "dicom").exists():
            refused += 1
            with pytest.raises(InputError, match="expected an output folder that holds no input"):
                check_contains_no_input(folder, [folder / "dicom"], listed_result(folder))
        write_with_dicom(False, ["dicom"])
        prepare()
    assert refused > 20
