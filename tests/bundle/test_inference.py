"""Inference by MONAI's command and by the command line writes the same files."""

import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from bundle_runs import BUNDLE, config_paths, distances_mm, run_config
from image_files import write_nifti
from json_files import read_json, write_json

from groupmorph_monai.apps.command_line import main
from groupmorph_monai.apps.configs import overlay_names
from groupmorph_monai.data import make_phantom

FAST = ["--no-refine"]
pytestmark = pytest.mark.usefixtures("no_pictures")  # but for the one of ``registered``


def infer(series, output, *overlays, effort="no_refine", **options):
    names = ("inference", *overlays, f"effort/{effort}")
    run_config("inference", *names, series=series, output_dir=str(output), **options)


def voxels(file):
    return nibabel.load(file).get_fdata()


def assert_same_images(folder, expected):
    """Check that ``folder`` contains every image of ``expected``, byte for byte."""
    for path in expected.glob("*.nii.gz"):
        assert (folder / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.fixture(scope="module")
def scans(series):
    """Three of the scans, as the time of the initial alignment grows with the square of their number."""
    return series[:3]


@pytest.fixture(scope="module")
def registered(scans, tmp_path_factory):
    output = tmp_path_factory.mktemp("registered")
    infer(scans, output)
    return output


def test_everything_is_written(registered):
    names = {path.name for path in registered.iterdir()}
    fields = {f"{kind}_{k:02d}.nii.gz" for kind in ("ddf", "inverse_ddf") for k in range(3)}
    images = {"warped.nii.gz", "mean.nii.gz", "coverage.nii.gz"}
    assert names == fields | images | {"report.json", "report.png", "report.html"}
    warped, mean, coverage = (voxels(registered / f"{name}.nii.gz") for name in ("warped", "mean", "coverage"))
    # Outside its field of view, a scan is 0 in the series and does not count in the mean.
    np.testing.assert_allclose(mean * coverage, warped.sum(axis=3), rtol=1e-5, atol=1e-3)
    assert coverage.max() == 3 and coverage.mean() > 2.5


def test_the_report_contains_metrics_settings_and_verdict(registered):
    report = read_json(registered / "report.json")
    for name in ("rmse", "nmi"):
        assert report["metrics"][f"{name}_before"] != report["metrics"][f"{name}_after"]
    assert report["metrics"]["nmi_after"] > report["metrics"]["nmi_before"]
    assert report["metrics"]["folding_percent"] == 0
    assert report["metrics"]["inverse_consistency_mm"] < 0.1
    settings = report["settings"]
    assert settings["alignment"] == {"name": "GeodesicMeanAlignment"}
    likelihood = {"name": "LocalCorrelation", "radii_voxels": [1, 2], "variance": 0.02**2}
    assert likelihood.items() <= settings["likelihood"].items()
    assert settings["prior"]["name"] == "FluidPrior" and settings["prior_weights"]["c"] == 60
    assert settings["inferer"]["posterior"]["name"] == "Posterior" and settings["overlays"] == []
    assert [part["name"] for part in settings["preprocessing"]["transforms"]][:2] == ["ClipSeriesd", "AlignInitiald"]
    assert report["verdict"]["verdict"] == "PASS", report["verdict"]["reasons"]
    assert {"overlap_percent", "initial_confidence", "agreement_percent"} < set(report["verdict"]["checks"])
    assert set(report["versions"]) >= {"torch", "monai", "groupmorph_monai"}
    assert report["seconds"]["register"] > 0 and report["peak_memory_gb"] > 0.1
    assert len(report["series"]) == 3


def test_the_command_line_gives_the_same_files(registered, scans, tmp_path):
    assert main(["register", *scans, "--output", str(tmp_path), *FAST]) == 0
    assert_same_images(tmp_path, registered)


def test_a_scan_at_two_positions_is_a_reason_to_look(scans, tmp_path):
    image = nibabel.load(scans[1])
    elsewhere = image.affine.copy()
    elsewhere[:3, 3] += [3, 0, 4]
    image.set_sform(image.affine, code=1)
    image.set_qform(elsewhere, code=1)
    path = str(tmp_path / "t1.nii.gz")
    nibabel.save(image, path)
    assert main(["register", scans[0], path, "--output", str(tmp_path / "out"), "--initial", "none", *FAST]) == 0
    report = read_json(tmp_path / "out" / "report.json")
    assert len(report["warnings"]) == 1 and path in report["warnings"][0] and "5.0 mm" in report["warnings"][0]
    assert f"LOOK: Q{report['warnings'][0][1:]}" in report["verdict"]["reasons"]


def test_refinement_is_deterministic(scans, tmp_path):
    for name in ("a", "b"):
        infer(scans, tmp_path / name, effort="fast", initial_alignment="none")
    assert_same_images(tmp_path / "b", tmp_path / "a")


def test_the_reference_stays_and_extra_maps_come_on_request(scans, tmp_path):
    options = ["--reference", "1", "--std", "2", "--jacobian", *FAST]
    assert main(["register", *scans, "--output", str(tmp_path), *options]) == 0
    assert not voxels(tmp_path / "ddf_01.nii.gz").any() and voxels(tmp_path / "ddf_00.nii.gz").any()
    np.testing.assert_allclose(voxels(tmp_path / "jacobian_01.nii.gz"), 1, atol=1e-6)
    assert 0 < voxels(tmp_path / "std_mm_00.nii.gz").mean() < 3
    np.testing.assert_allclose(voxels(tmp_path / "warped.nii.gz")[..., 1], voxels(scans[1]), rtol=1e-5, atol=1e-3)


PAIRS = ("modes/pair_wise", "modes/symmetric")
KINDS = ("modes/", "likelihoods/", "integrators/", "posteriors/", "data/lung_ct")
OTHERS = {"modes/sample", "modes/transport", "modes/surfaces", "modes/bidirectional"}  # other models, or training alone
NOT_FOR_ENHANCEMENT = [
    # likelihoods of intensities, which take enhancement for motion
]
EXCLUDED = OTHERS.union(NOT_FOR_ENHANCEMENT)
REGISTER = [name for name in overlay_names() if name.startswith(KINDS) and name not in EXCLUDED]


@pytest.mark.parametrize("overlay", REGISTER)
def test_every_overlay_of_the_shipped_weights_registers(overlay, phantom, scans, tmp_path):
    number = 2 if overlay in PAIRS else 3
    infer(scans[:number], tmp_path, overlay, effort="fast", initial_alignment="none")
    before, after = distances_mm(phantom, tmp_path, number)
    print(f"{overlay}: {after / before:.3f} of {before:.3f} mm left")
    assert after < 0.6 * before


def test_a_folder_and_a_4d_file_are_the_same_series(registered, scans, tmp_path):
    volumes = [nibabel.load(file) for file in scans]
    stacked = np.stack([np.asarray(v.dataobj) for v in volumes], axis=3)
    infer(write_nifti(tmp_path / "series.nii.gz", stacked, volumes[0].affine), tmp_path / "out")
    for name in ("ddf_01.nii.gz", "inverse_ddf_02.nii.gz"):
        np.testing.assert_array_equal(voxels(tmp_path / "out" / name), voxels(registered / name))


def test_fields_apply_to_labels_and_points(registered, phantom, scans, tmp_path):
    def apply(field, file, output, *options):
        assert main(["apply", str(registered / field), str(file), "--output", str(output), *options]) == 0

    label, output = phantom["lesion_mask"][2].numpy(), tmp_path / "moved"
    apply(
        "ddf_02.nii.gz", write_nifti(tmp_path / "lesions.nii.gz", label, phantom["affine"].numpy()), output, "--label"
    )
    resampled = np.asarray(nibabel.load(output / "lesions.nii.gz").dataobj)
    assert set(np.unique(resampled)) == set(np.unique(label)) and resampled.dtype == label.dtype
    points = Path(scans[2]).with_name("landmarks_02.csv")
    apply("inverse_ddf_02.nii.gz", points, output)
    apply("ddf_02.nii.gz", output / "landmarks_02.csv", output / "b")
    start, mapped, back = (
        np.loadtxt(file, delimiter=",", skiprows=1)
        for file in (points, output / "landmarks_02.csv", output / "b" / "landmarks_02.csv")
    )
    assert np.linalg.norm(mapped - start, axis=1).max() > 0.05
    assert np.linalg.norm(back - start, axis=1).max() < 0.1


def test_evaluation_prints_a_table_with_landmarks(phantom, save_series, tmp_path, capsys):
    (tmp_path / "data" / "patient").mkdir(parents=True)
    save_series({**phantom, "image": phantom["image"][:3]}, tmp_path / "data" / "patient")
    folders = {"dataset_dir": str(tmp_path / "data"), "output_dir": str(tmp_path / "out")}
    run_config("evaluate", "inference", "evaluate", **folders)
    rows = read_json(tmp_path / "out" / "metrics.json")["series"]
    assert rows[0]["series"] == "patient"
    assert rows[0]["landmark_after_mm_mean"] < rows[0]["landmark_before_mm_mean"]
    assert "landmark_after_mm_mean" in capsys.readouterr().out
    assert (tmp_path / "out" / "metrics.csv").read_text(encoding="utf-8").splitlines()[1].startswith("patient,")


@pytest.mark.parametrize("number", [2, 5])
def test_a_series_of_another_length_is_registered_with_the_same_weights(number, phantom, series, tmp_path):
    infer(series[:number], tmp_path, initial_alignment="none")
    before, after = distances_mm(phantom, tmp_path, number)
    print(f"{after / before:.3f} of {before:.3f} mm left")
    assert after < 0.6 * before
    assert len(list(tmp_path.glob("inverse_ddf_*.nii.gz"))) == number


@pytest.mark.slow
def test_more_effort_aligns_better(save_series, tmp_path):
    """This takes a series of sufficient size, as the stronger prior of ``effort/best`` preserves lesions."""
    phantom, errors = make_phantom(3001, (96, 96, 64), 4), {}
    series = save_series(phantom, tmp_path)
    for effort in ("no_refine", "fast", "best"):
        infer(series, tmp_path / effort, effort=effort, initial_alignment="none")
        _, errors[effort] = distances_mm(phantom, tmp_path / effort, 4)
    assert errors["best"] < errors["fast"] < errors["no_refine"]


@pytest.mark.slow
def test_the_demo_shows_what_the_shipped_weights_promise(tmp_path, capsys, caplog):
    assert main(["demo", "--output", str(tmp_path)]) == 0
    assert "Refined the motion" in caplog.text and "common space" not in caplog.text  # as of each field that is applied
    printed = capsys.readouterr().out
    table = [line.split() for line in printed.splitlines()]
    assert "Verdict: PASS\n" in printed and printed.rstrip().endswith(str(tmp_path / "report.html"))
    before, after = (float(next(row for row in table if row and row[0] == when)[1]) for when in ("before", "after"))
    assert after < 0.1 * before
    assert read_json(tmp_path / "report.json")["metrics"]["folding_percent"] < 0.001


def test_a_mask_restricts_what_is_refined(scans, tmp_path):
    native = nibabel.load(scans[0])
    fields = {}
    for name, inside in (("none", None), ("all", slice(None)), ("half", slice(native.shape[0] // 2))):
        options = []
        if inside is not None:
            mask = np.zeros(native.shape, np.uint8)
            mask[inside] = 1
            options = ["--mask", write_nifti(tmp_path / "mask.nii.gz", mask, native.affine)]
        assert main(["register", *scans, "--output", str(tmp_path / name), "--initial", "none", *options]) == 0
        fields[name] = voxels(tmp_path / name / "ddf_01.nii.gz")
    np.testing.assert_allclose(fields["all"], fields["none"], atol=1e-3)
    assert np.abs(fields["half"] - fields["none"]).max() > 0.05
    assert read_json(tmp_path / "half" / "report.json")["settings"]["mask"] == [str(tmp_path / "mask.nii.gz")]


def test_synthetic_series_are_measured_on_request(tmp_path, capsys):
    small = ["phantoms=2", "phantom_size_voxels=[24, 24, 24]", "phantom_timepoints=3"]
    settings = [part for value in small for part in ("--set", value)]
    assert main(["evaluate", "--phantoms", *settings, "--overlay", "effort/no_refine", "--output", str(tmp_path)]) == 0
    metrics = read_json(tmp_path / "metrics.json")
    assert len(metrics["series"]) == 2 and 0 < metrics["mean"]["landmark_after_mm_mean"] < 5


def test_a_data_list_is_registered_each_series_into_its_folder(registered, scans, tmp_path):
    listed = [{"name": "first", "image": scans}, {"name": "pair", "image": scans[:2]}]
    write_json(tmp_path / "dataset.json", {"training": listed, "validation": []})
    infer(None, tmp_path / "out", "batch_inference", dataset_dir=str(tmp_path))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"first", "pair"}
    assert_same_images(tmp_path / "out" / "first", registered)
    report = read_json(tmp_path / "out" / "pair" / "report.json")
    assert report["series"] == scans[:2] and report["seconds"]["register"] > 0


@pytest.mark.slow
def test_processes_share_an_evaluation(tmp_path):
    small = {"phantoms": 3, "phantom_size_voxels": [24, 24, 24], "phantom_timepoints": 3, "initial_alignment": "none"}
    names = ("inference", "evaluate", "effort/no_refine")
    run_config("evaluate", *names, output_dir=str(tmp_path / "one"), **small)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nnodes=1", "--nproc_per_node=2"]
    files = str(config_paths(*names, "multi_gpu_evaluate"))
    command += ["-m", "monai.bundle", "run", "evaluate", "--config_file", files]
    for name, value in {**small, "bundle_root": str(BUNDLE), "output_dir": str(tmp_path / "two")}.items():
        command += [f"--{name}", str(value)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (read_json(tmp_path / name / "metrics.json")["series"] for name in ("one", "two"))
    assert len(two) == 3
    for alone, shared in zip(one, two):
        assert shared.pop("series") == alone.pop("series")
        assert {**shared, "seconds": 0} == pytest.approx({**alone, "seconds": 0}, rel=1e-4)
    assert done.stdout.count("All metrics:") == 1
