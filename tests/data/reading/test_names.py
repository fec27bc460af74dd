"""Second names of results in fMRIPrep's style."""

import pytest

from groupmorph_monai.data.reading.names import bids_name, is_bids_name

SERIES = [f"/data/sub-01/anat/sub-01_ses-02_acq-dce_run-{k}_T1w.nii.gz" for k in (1, 2)]


@pytest.mark.parametrize(
    "ours, theirs",
    [
        ("ddf_02.nii.gz", "from-scan02_to-common_mode-image_xfm.nii.gz"),
        ("inverse_ddf_02.nii.gz", "from-common_to-scan02_mode-image_xfm.nii.gz"),
        ("transform_11.h5", "from-scan11_to-common_mode-image_xfm.h5"),
        ("inverse_transform_00.h5", "from-common_to-scan00_mode-image_xfm.h5"),
        ("warped.nii.gz", "desc-aligned_T1w.nii.gz"),
        ("mean.nii.gz", "desc-mean_T1w.nii.gz"),
    ],
)
def test_a_name_begins_with_what_the_scans_share(ours, theirs):
    assert bids_name(ours, SERIES) == f"sub-01_ses-02_acq-dce_{theirs}"
    assert bids_name(ours, SERIES[:1]) == f"sub-01_ses-02_acq-dce_run-1_{theirs}"
    plain = theirs.replace("T1w", "image")
    assert bids_name(ours, ["t0.nii.gz", SERIES[1]]) == plain
    assert is_bids_name(plain) and is_bids_name(f"sub-01_ses-02_acq-dce_{theirs}")


def test_words_of_earlier_processing_are_not_repeated_in_the_description():
    scans = ["sub-01_run-1_desc-preproc_T1w.nii.gz", "sub-01_run-2_desc-preproc_T1w.nii.gz"]
    assert bids_name("warped.nii.gz", scans) == "sub-01_desc-aligned_T1w.nii.gz"
    assert bids_name("ddf_00.nii.gz", scans) == "sub-01_from-scan00_to-common_mode-image_xfm.nii.gz"


def test_scans_of_two_kinds_share_no_suffix():
    assert bids_name("mean.nii.gz", ["sub-01_T1w.nii.gz", "sub-01_T2w.nii.gz"]) == "sub-01_desc-mean_image.nii.gz"


@pytest.mark.parametrize("scan", ["sub-01_T1w.v2.nii.gz", "sub-01_T1w (1).nii.gz", "sub-01_ses-a+b_T1w.nii.gz"])
def test_second_names_of_unusual_scans_are_known_again(scan):
    assert is_bids_name(bids_name("mean.nii.gz", [scan])) and is_bids_name(bids_name("ddf_00.nii.gz", [scan]))


@pytest.mark.parametrize("name", ["report.json", "jacobian_00.nii.gz", "motion.dcm", "ddf_x.nii.gz"])
def test_other_files_have_no_second_name(name):
    assert bids_name(name, SERIES) is None and not is_bids_name(name)


@pytest.mark.parametrize(
    "name", ["sub-01_T1w.nii.gz", "from-T1w_to-MNI_mode-image_xfm.h5", "sub-01_desc-preproc_T1w.nii.gz"]
)
def test_a_users_own_files_are_not_taken_for_results(name):
    assert not is_bids_name(name)
