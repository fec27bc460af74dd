"""Misuse of the commands for studies and fields ends with one line and exit code 2, before anything runs or is
written."""

import gzip
import os
import shutil
import tempfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from image_files import write_nifti
from json_files import write_json

from groupmorph_monai.apps.command_line import main
from groupmorph_monai.apps.run import checked_run


@pytest.fixture
def study(series, tmp_path):
    """Two series of three scans with landmarks."""
    for name in ("s0", "s1"):
        (tmp_path / "study" / name).mkdir(parents=True)
        for file in series[:3]:
            shutil.copy(file, tmp_path / "study" / name)
            points = Path(file).with_name(Path(file).name.replace("t", "landmarks_", 1).replace(".nii.gz", ".csv"))
            shutil.copy(points, tmp_path / "study" / name)
    return tmp_path / "study"


IMAGES = {"image": ["s0/t00.nii.gz", "s0/t01.nii.gz"]}
LISTS = {
    "no images": {"training": [{"image": []}]},
    "an empty name": {"training": [{"image": ""}]},
    "a number": {"training": [{"image": 3}]},
    "landmarks that are text": {"training": [{**IMAGES, "landmarks": "s0/landmarks_00.csv"}]},
    "labels that are numbers": {"training": [{**IMAGES, "labels": [1, 2]}]},
    "a list": [1],
    "code": {"training": [{"image": "$__import__('pathlib').Path('pwned').touch()"}]},
    "a reference": {"training": [{"image": "@weights"}]},
    "a null character": {"training": [{"image": ["s0/t00.nii.gz", "a\0b"]}]},
    "half a character": {"training": [{"image": ["s0/t00.nii.gz", "\ud800"]}]},
}


@pytest.mark.parametrize(
    "labels",
    [["l0"], ["l0", "l1", "half"], ["l0", "half"], ["l0", "none"], ["l0", "away"], ["l0", "many"], ["l0", "two"]],
)
def test_label_maps(labels, study, refused):
    scan = nibabel.load(study / "s0" / "t00.nii.gz")
    away = scan.affine + 900 * np.eye(4)[:, :1] @ np.eye(4)[3:]
    ones = np.ones(scan.shape, np.float32)
    for name, data, affine in (
        ("l0", ones, scan.affine), ("l1", ones, scan.affine), ("half", 0.5 * ones, scan.affine),
        ("none", 0 * ones, scan.affine), ("away", ones, away), ("many", (2**24 + 2) * ones, scan.affine),
        ("two", 2 * ones, scan.affine),
    ):  # fmt: skip
        write_nifti(study / f"{name}.nii.gz", data, affine)
    entry = {**IMAGES, "labels": [f"{name}.nii.gz" for name in labels]}
    write_json(study / "dataset.json", {"training": [entry], "validation": [entry]})
    words = ["labels", f"got {len(labels)}"] if len(labels) != 2 else [f"study/{labels[1]}.nii.gz"]
    refused(["train", "--dataset", "study", "--output", "out"], *words)


def test_label_of_surfaces(study, refused):
    scan = nibabel.load(study / "s0" / "t00.nii.gz")
    for number in (1, 7):
        write_nifti(study / f"l{number}.nii.gz", np.full(scan.shape, number, np.uint8), scan.affine)
    write_json(study / "dataset.json", {"training": [{**IMAGES, "labels": ["l7.nii.gz", "l1.nii.gz"]}]})
    options = ["--overlay", "modes/surfaces", "--set", "surface_structure=7"]
    refused(["train", "--dataset", "study", "--output", "out", *options], "study/l1.nii.gz: expected the label 7")
    assert not Path("out").exists()


@pytest.mark.parametrize("command", ["evaluate", "evaluate --shard 1/1", "train"])
@pytest.mark.parametrize("kind", LISTS)
def test_data_list(kind, command, study, refused):
    write_json(study / "dataset.json", LISTS[kind])
    refused([*command.split(), "--dataset", "study", "--output", "out"], "study")


@pytest.mark.parametrize("command", ["evaluate", "train"])
def test_broken_series(command, study, refused):
    (study / "s1" / "t01.nii.gz").write_bytes(gzip.compress(b"no image"))
    refused([command, "--dataset", "study", "--output", "out"], "s1/t01.nii.gz")


def test_absent_reference(study, refused):
    refused(
        ["train", "--dataset", "study", "--output", "out", "--set", "reference=5", "--overlay", "modes/all_to_one"],
        "reference",
        "3 timepoints",
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["phantom_size_voxels=[1024,1024,1024]"], "fit into"),
        (["phantom_size_voxels=[16,16,16]", "phantom_max_motion_voxels=8"], "half the size"),
        (["phantom_size_voxels=[32,32,32]", "phantom_margin_voxels=13"], "leave 8 voxels"),
    ],
)
def test_phantom_size(settings, words, refused):
    options = [word for setting in settings for word in ("--set", setting)]
    refused(["train", "--phantoms", "--output", "out", *options], "--set phantom_", words)


def test_patches_larger_than_memory(study, refused, monkeypatch):
    monkeypatch.setattr("groupmorph_monai.apps.run.available_memory_gb", lambda: 4.0)
    options = ["--output", "out", "--set", "patch_size_voxels=[1000,400,400]"]
    refused(["train", "--dataset", "study", *options], "--set patch_size_voxels: expected patches that fit into 4.0 GB")


@pytest.mark.parametrize("command", ["evaluate", "evaluate --shard 1/1", "train"])
def test_dataset(command, tmp_path, refused):
    words = command.split()
    refused([*words, "--output", "out"], "--phantoms")
    refused([*words, "--dataset", "", "--output", "out"], "--dataset")
    refused([*words, "--dataset", "absent", "--output", "out"], "absent")
    (tmp_path / "study" / "patient").mkdir(parents=True)
    refused([*words, "--dataset", "study", "--output", "out"], "expected image files")
    assert not Path("out").exists()


def test_training_that_cannot_start_leaves_nothing(study, refused, monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)  # PyTorch sets it for other tests
    command = ["train", "--dataset", "study", "--output", "out", "--set", "spacing_mm=500"]
    refused([*command, "--set", "initial_alignment=none"], "spacing_mm", "4 voxels")
    assert not Path("out").exists()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == tempfile.gettempdir()  # else PyTorch creates a folder in it
    curves = Path("out/tensorboard/events.out.tfevents.1")  # of another training
    curves.parent.mkdir(parents=True)
    curves.touch()
    assert main(command) == 2 and os.listdir(curves.parent) == [curves.name]


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("evaluate --dataset study", "metrics.csv"),
        ("evaluate --dataset study --shard 1/1", "metrics.csv"),
        ("register study/s0", "report.html"),
    ],
)
def test_folder_in_place_of_a_result(command, name, study, refused, monkeypatch):
    monkeypatch.setattr("groupmorph_monai.workflow.RegistrationInferer.fields", None)
    (Path("out") / name).mkdir(parents=True)
    refused([*command.split(), "--output", "out"], f"out/{name}: expected a file or none, got a folder")


@pytest.mark.parametrize(
    ("overlay", "words"),
    [
        ("modes/sample", "expected an overlay for training; use groupmorph sample"),
        ("modes/surfaces", "labels: expected one label map for each of the 3 scans of s0, got 0"),
        ("effort/best", "changes refinement_iterations, which train.yaml does not use"),
    ],
)
def test_overlay_that_training_cannot_use(overlay, words, study, refused):
    refused(["train", "--dataset", "study", "--output", "out", "--overlay", overlay], words)
    assert not Path("out").exists()


@pytest.mark.parametrize("content", [lambda: [1], lambda: {"network": {}}, lambda: {"trainer": {}}, dict])
def test_training_that_would_replace_another_file(content, study, refused):
    file = Path("out/checkpoint_epoch=3.pt")
    file.parent.mkdir()
    torch.save(content(), file)
    refused(["train", "--dataset", "study", "--output", "out"], f"{file}: expected a checkpoint of a training run, got")
    assert torch.load(file) == content()


@pytest.mark.parametrize(
    ("name", "words"),
    [("cache", "got a file"), ("tensorboard", "got a file"), ("checkpoint_epoch=1.pt", "got a folder")],
)
def test_training_beside_other_files(name, words, study, refused):
    path = Path("out") / name
    path.parent.mkdir()
    path.mkdir() if words == "got a folder" else path.touch()
    refused(["train", "--dataset", "study", "--output", "out"], f"{path}: expected", words)


@pytest.mark.parametrize("command", ["evaluate --dataset study", "evaluate --dataset study --shard 1/1"])
@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("metrics.csv", "mine", "expected no file that an evaluation would replace"),
        ("metrics.json", '{"series": ["mine"]}', "expected no file that an evaluation would replace"),
        (".measured", "mine", "expected a folder or none, got a file"),
    ],
)
def test_file_that_no_evaluation_wrote(name, content, words, command, study, refused):
    file = Path("out") / name
    file.parent.mkdir()
    file.write_text(content, encoding="utf-8")
    refused([*command.split(), "--output", "out"], f"{file}: {words}")
    assert file.read_text(encoding="utf-8") == content


def test_held_out_series_of_all(study, refused):
    command = ["evaluate", "--dataset", "study", "--output", "out"]
    refused([*command, "--set", "held_out=s0"], "add --set split=validation")
    checked_run("evaluate", ["data/dirlab"], ["held_out=s0", "split=validation"])
    checked_run("evaluate", ["data/dirlab"])  # which names its own


def test_mask_that_no_registration_of_a_study_uses(study, refused):
    shutil.copy(study / "s0" / "t00.nii.gz", "mask.nii.gz")
    rows = "name\tscans\tmask\na\tstudy/s0\t\nb\tstudy/s1\tmask.nii.gz\n"
    Path("study.tsv").write_text(rows, encoding="utf-8")
    command = ["cohort", "study.tsv", "--output", "out", "--shard", "1/1", "--no-refine", "--initial", "none"]
    refused(command, "study.tsv: b: --mask: expected a refinement or an initial alignment", "nothing was registered")
    assert not Path("out").exists()


def test_folder_in_place_of_a_manifest(study, refused):
    refused(["cohort", "study", "--output", "out"], "study: expected a tab-separated table, got a folder; use a file")


@pytest.mark.parametrize("name", ["cohort.tsv", "cohort.html", "cohort.log"])
@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_manifest_that_the_study_would_replace(name, link, study, refused):
    own = Path("out", name)
    own.parent.mkdir()
    manifest = Path("study.tsv") if link else own
    manifest.write_text("name\tscans\na\t../study/s0\n", encoding="utf-8")
    if link:
        link(manifest.resolve(), own)
    before = own.read_bytes()
    command = ["cohort", "--output", "out", "--shard", "1/1", "--no-refine", "--initial", "none"]
    refused([*command, str(manifest)], "manifest: expected a file that the study does not write", str(manifest))
    assert own.read_bytes() == before and os.listdir("out") == [name]


@pytest.mark.parametrize("folder", ["series/a", "failed/a", ".work"])
@pytest.mark.parametrize("kind", ["scans", "mask", "manifest", "--weights", "--overlay"])
def test_inputs_in_the_folders_of_a_study(kind, folder, study, refused):
    inside = Path("out", folder, "drawn.nii.gz" if kind == "mask" else "own.yaml")
    inside.parent.mkdir(parents=True)
    inside.write_text("noise: 0.1\n", encoding="utf-8")
    if kind == "scans":
        inside = inside.parent / "scans"
        shutil.copytree(study / "s0", inside)
    row = f"a\t{inside if kind == 'scans' else study / 's0'}\t{inside if kind == 'mask' else ''}\n"
    manifest = inside if kind == "manifest" else Path("study.tsv")
    manifest.write_text(f"name\tscans\tmask\n{row}", encoding="utf-8")
    options = [kind, str(inside)] if kind.startswith("--") else []
    words = f"{kind}: expected a file that the study does not write, outside series, failed and .work in --output"
    refused(["cohort", str(manifest), "--output", "out", "--shard", "1/1", *options], words, str(inside))


@pytest.mark.parametrize("command", ["train", "evaluate", "evaluate --shard 1/1"])
@pytest.mark.parametrize("images", ["s0", ["s0/t00.nii.gz", "s0/t01.nii.gz"], ["../out/t00.nii.gz", "s0/t01.nii.gz"]])
def test_output_among_listed_scans(images, command, study, refused):
    output = Path("study/s0")
    if "../out/t00.nii.gz" in images:
        output = Path("out")
        shutil.copytree(study / "s0", output)
    write_json(study / "dataset.json", {"training": [{"image": images}], "validation": [{"image": "s1"}]})
    words = [*command.split(), "--dataset", "study", "--output", str(output)]
    refused(words, f"--output: expected a folder without scans, got {output}")


@pytest.mark.parametrize("command", ["train", "evaluate", "evaluate --shard 1/1"])
def test_output_among_linked_scans(command, study, refused):
    shutil.move(study / "s0", "scans")
    os.symlink(Path("scans").resolve(), study / "s0")
    words = [*command.split(), "--dataset", "study", "--output", "scans"]
    refused(words, "--output: expected a folder without scans, got scans")


@pytest.mark.parametrize("output", ["study", "link"])
def test_output_of_a_study_among_its_series(output, study, refused):
    os.symlink("study", "link")
    Path("study.tsv").write_text("name\tscans\na\tstudy/s0\n", encoding="utf-8")
    words = f"line 2: scans: expected files outside --output {output}, got {study / 's0'}"
    refused(["cohort", "study.tsv", "--output", output, "--shard", "1/1"], words)


def test_label_map_in_the_folders_of_an_evaluation(study, refused):
    labels = Path("out/evaluation/series/s0/labels.nii.gz")
    labels.parent.mkdir(parents=True)
    labels.touch()
    write_json(study / "dataset.json", {"training": [{**IMAGES, "labels": [str(labels.resolve()), "s0/t01.nii.gz"]}]})
    command = ["evaluate", "--dataset", "study", "--output", "out", "--shard", "1/1"]
    refused(command, "labels: expected a file that the study does not write, outside series, failed and .work")


@pytest.mark.parametrize("command", ["cohort study.tsv", "evaluate --dataset study"])
@pytest.mark.parametrize("name", ["cohort.tsv", "cohort.html"])
def test_file_that_no_study_wrote(name, command, study, refused):
    Path("study.tsv").write_text("name\tscans\na\tstudy/s0\n", encoding="utf-8")
    own = Path("out" if command.startswith("cohort") else "out/evaluation", name)
    own.parent.mkdir(parents=True)
    own.write_text("name\tscans\n", encoding="utf-8")
    refused([*command.split(), "--output", "out", "--shard", "1/1"], f"got {own.resolve()}, which none wrote")
    assert own.read_text(encoding="utf-8") == "name\tscans\n" and os.listdir(own.parent) == [name]


@pytest.mark.parametrize("name", ["cohort.html", "cohort.log"])
@pytest.mark.parametrize("command", ["cohort study.tsv", "evaluate --dataset study"])
def test_folder_in_place_of_a_summary(command, name, study, refused):
    Path("study.tsv").write_text("name\tscans\na\tstudy/s0\n", encoding="utf-8")
    summary = Path("out" if command.startswith("cohort") else "out/evaluation", name)
    summary.mkdir(parents=True)
    refused(
        [*command.split(), "--output", "out", "--shard", "1/1"], f"{summary}: expected a file or none, got a folder"
    )


def test_series_with_too_few_timepoints(study, refused):
    settings = ["--set", "timepoints_least=4", "--set", "timepoints_most=5"]
    refused(["train", "--dataset", "study", "--output", "out", *settings], "timepoints_least", "3 timepoints of s0")


def test_landmarks_outside_their_scan(study, refused):
    points = (study / "s1" / "landmarks_01.csv").read_text(encoding="utf-8").splitlines()
    (study / "s1" / "landmarks_01.csv").write_text(
        "\n".join([points[0], *["9e3,9e3,9e3"] * (len(points) - 1)]), encoding="utf-8"
    )
    refused(["evaluate", "--dataset", "study", "--output", "out"], "s1/landmarks_01.csv", "outside")


@pytest.mark.parametrize(
    "setting",
    ["patch_size_voxels=[0,0,0]", "patch_size_voxels=[16,16]", "learning_rate=-1", "learning_rate=1e30",
     "kl_weight=.nan", "batch_size=0", "batch_size=2", "timepoints_least=1", "timepoints_least=9",
     "iterations_per_epoch=0", "max_minutes=-1", "seed=-1", "adam_betas=[2,2]", "train#trainer=3", "network_def=3"],
)  # fmt: skip
def test_training_settings(setting, refused):
    refused(["train", "--phantoms", "--output", "out", "--set", setting], "--set")


def test_number_of_iterations(refused):
    command = ["train", "--phantoms", "--output", "out"]
    refused([*command, "--set", "learning_rate"], "--set: expected NAME=VALUE")
    refused([*command, "--set", "max_iterations=abc"], "--set max_iterations: expected a whole number")
    refused([*command, "--iterations", "0"], "--iterations: expected a whole number from 1")


@pytest.mark.parametrize(
    ("data", "words"),
    [("gone", "--data: expected one of breast, thorax, phantom"), ("/dev/null", "--data"), ("none", "expected")],
)
def test_data_of_the_paper_table(data, words, tmp_path, refused):
    (tmp_path / "none").mkdir()
    refused(["benchmark", "paper", "--data", data], words, data)


@pytest.mark.parametrize("suite", ["likelihoods", "breathing", "scaling", "synthetic", "full_size", "memory"])
def test_weights_of_a_suite(suite, series, refused):
    refused(["benchmark", suite, "--weights", series[0]], "weights", series[0])


def test_page_among_the_scans(series, refused):
    refused(["benchmark", "warped", "--series", *series[:2], "--output", str(Path(series[0]).parent)], "--output")


@pytest.fixture(scope="module")
def field(phantom, tmp_path_factory):
    """A written field on the phantom's grid."""
    file = tmp_path_factory.mktemp("field") / "ddf_00.nii.gz"
    image = nibabel.Nifti1Image(np.zeros((28, 24, 20, 1, 3), np.float32), phantom["affine"].numpy())
    image.header.set_intent("vector")
    nibabel.save(image, file)
    return str(file)


def test_results_with_one_name(field, series, tmp_path, refused):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        shutil.copy(series[0], tmp_path / folder / "x.nii.gz")
    refused(["apply", field, "a/x.nii.gz", "b/x.nii.gz", "--output", "out"], "b/x.nii.gz", "a/x.nii.gz")
    shutil.copy(field, tmp_path / "b" / "t00.nii.gz")
    refused(["apply", "b/t00.nii.gz", series[0], "--output", "b"], "would replace the input")
    refused(["apply", field, series[0], "gone.nii.gz", "--output", "out"], "gone.nii.gz")
    refused(["apply", field, f"{'x' * 250}.mha", "--output", "out"], "expected a name of at most 255 bytes, got 257")


def test_dots_in_names_are_kept(field, series, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["scan.t1.nii.gz", "scan.t2.nii.gz", "1.2.840.113.NII.GZ"]
    for name in names:
        shutil.copy(series[0], name)
    assert main(["apply", field, *names, "--output", "out"]) == 0
    assert {path.name for path in Path("out").glob("*.nii.gz")} == {"1.2.840.113.nii.gz", *names[:2]}


@pytest.mark.parametrize("name", ["p.csv", "p.txt", "p.fcsv", "p.mrk.json"])
@pytest.mark.parametrize("content", ["", "x,y,z\n", "1,2\n", "1,2,3\n4\n", "a,b,c\n", "nan,1,2\n", "point\n"])
def test_points(name, content, field, tmp_path, refused):
    (tmp_path / name).write_text(content, encoding="utf-8")
    refused(["apply", field, name, "--output", "out"], name)
