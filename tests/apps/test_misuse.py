"""Families of misuse, through the command line: one line, exit code 2, nothing written, nothing run."""

import gzip
import json
import os
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from groupmorph_monai.apps.arguments import make_parser
from groupmorph_monai.apps.command_line import main

SHIPPED = Path(__file__).parents[2] / "bundle" / "models" / "model.pt"
FAST = ["--no-refine", "--initial", "none"]


@pytest.fixture
def refused(tmp_path, monkeypatch, capfd):
    """Function that runs a command, and checks that it is refused in one line with these words and writes nothing."""
    monkeypatch.chdir(tmp_path)

    def check(arguments, *words):
        before = sorted(path for path in tmp_path.rglob("*"))
        try:
            code = main(arguments)
        except SystemExit as left:
            code = left.code
        error = capfd.readouterr().err
        lines = [line for line in error.splitlines() if line.startswith("groupmorph")]
        assert code == 2 and len(lines) == 1 and "Traceback" not in error, error
        assert all(word in lines[0] for word in words), lines[0]
        written = [path for path in tmp_path.rglob("*") if path not in before and path != tmp_path / "out"]
        assert not written

    return check


class Code:
    def __reduce__(self):
        return Path.touch, (Path("pwned"),)


def state(change):
    weights = torch.load(SHIPPED, weights_only=True)
    change(weights)
    return weights


def poison(value):
    def change(weights):
        next(iter(weights.values())).view(-1)[0] = value

    return change


def one_other_byte(content):
    """In the middle, which PyTorch does not notice."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


WEIGHTS = {
    "nothing": (b"", "empty file"),
    "text": (b"hello", "different file"),
    "half": (lambda: SHIPPED.read_bytes()[:90000], "damaged"),
    "without its end": (lambda: SHIPPED.read_bytes()[:-100], "damaged"),
    "code": (lambda: Code(), "could run code"),
    "code among weights": (lambda: {"network": {"a": Code()}}, "could run code"),
    "a module": (lambda: torch.nn.Linear(2, 2), "could run code"),
    "a list": (lambda: [1], "list"),
    "a tensor": (lambda: torch.ones(3), "Tensor"),
    "none": (lambda: None, "NoneType"),
    "text for tensors": (lambda: {"a": "b"}, "state dict"),
    "NaN": (lambda: state(poison(float("nan"))), "finite"),
    "infinity": (lambda: state(poison(float("inf"))), "finite"),
    "one missing": (lambda: state(lambda w: w.pop(next(iter(w)))), "GroupSetVAE"),
    "one too many": (lambda: state(lambda w: w.update(a=torch.ones(1))), "GroupSetVAE"),
    "whole numbers": (lambda: {name: value.int() for name, value in state(len).items()}, "got int32"),
    "complex numbers": (lambda: {name: value.cfloat() for name, value in state(len).items()}, "got complex64"),
    "no data": (lambda: {name: value.to("meta") for name, value in state(len).items()}, "a tensor without data"),
    "another byte": (lambda: one_other_byte(SHIPPED.read_bytes()), "wrong checksum"),
    "a scan": (gzip.compress(b"no weights"), "a different file"),
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_of_a_wrong_kind(kind, series, tmp_path, refused):
    content, words = WEIGHTS[kind]
    content = content() if callable(content) else content
    file = tmp_path / "w.pt"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    refused(["register", *series[:2], "--output", "out", "--weights", "w.pt", *FAST], "weights", words)


def test_weights_that_are_a_script(series, tmp_path, refused):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "w.pt")
    refused(["register", *series[:2], "--output", "out", "--weights", "w.pt", *FAST], "weights", "TorchScript")


OVERLAYS = {
    "code": ("noise: $print(1)", "noise"),
    "another name": ("noisee: 1", "did you mean noise"),
    "a reference": ("noise: '@nothing'", "noise"),
    "a component": ("network_def: {_target_: os.system, command: touch pwned}", "network_def"),
    "imports": ("imports: [$import os]", "imports"),
    "broken": ("a: [1\nb: }", "YAML"),
    "a list": ("[1, 2]", "NAME: VALUE"),
    "bytes": (bytes(range(256)), "YAML"),
    "a setting twice": ("noise: 0.02\nnoise: 0.5\n", "noise twice"),
    "an octal number": ("std_draws: 010", "010"),
    "a tag": ("noise: !!python/object/apply:os.system [touch pwned]", "YAML"),
    "itself": ("noise: &a [*a]", "noise"),
    "a thousand million times itself": (
        "a: &a [1]\n" + "".join(f"a{n}: &{n} [{9 * f'*{m},'}]\n" for m, n in zip("abcdefghi", "bcdefghij")),
        "'a'",
    ),
}


@pytest.mark.parametrize("kind", OVERLAYS)
def test_broken_overlays(kind, series, tmp_path, refused):
    content, words = OVERLAYS[kind]
    (tmp_path / "own.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(["register", *series[:2], "--output", "out", "--overlay", "own.yaml"], "--overlay own.yaml", words)


@pytest.mark.parametrize("name", ["train", "inference", "", "../configs/data/lung_ct", "modes/surfaces", "/etc/passwd"])
def test_overlays_that_are_none(name, series, refused):
    refused(["register", *series[:2], "--output", "out", "--overlay", name], "--overlay")


@pytest.mark.parametrize("cut", [1, 4, 8, 100])
def test_a_gzip_file_without_its_end(cut, series, tmp_path, refused):
    (tmp_path / "cut.nii.gz").write_bytes(Path(series[0]).read_bytes()[:-cut])
    refused(["register", series[1], "cut.nii.gz", "--output", "out"], "cut.nii.gz")


def test_a_gzip_file_with_another_checksum(series, tmp_path, refused):
    content = bytearray(Path(series[0]).read_bytes())
    content[-6] ^= 0xFF
    (tmp_path / "bad.nii.gz").write_bytes(content)
    refused(["register", series[1], "bad.nii.gz", "--output", "out"], "bad.nii.gz", "CRC")


def test_what_follows_a_whole_gzip_file_does_no_harm(series, tmp_path):
    from groupmorph_monai.data.reading.readers import read_image

    (tmp_path / "more.nii.gz").write_bytes(Path(series[0]).read_bytes() + b"more")
    np.testing.assert_array_equal(read_image(tmp_path / "more.nii.gz").data, read_image(series[0]).data)


@pytest.mark.parametrize("kind", ["empty", "negative", "elsewhere", "missing", "no name"])
def test_masks_that_leave_nothing(kind, series, tmp_path, refused):
    scan = nibabel.load(series[0])
    affine, value = scan.affine.copy(), {"empty": 0, "negative": -1}.get(kind, 1)
    affine[:3, 3] += 500 * (kind == "elsewhere")
    if kind not in ("missing", "no name"):
        nibabel.save(nibabel.Nifti1Image(np.full(scan.shape, value, np.float32), affine), tmp_path / "m.nii.gz")
    mask = "" if kind == "no name" else "m.nii.gz"
    words = ["--mask" if kind == "no name" else mask, *(["does not overlap the scan"] if kind == "elsewhere" else [])]
    refused(["register", *series[:2], "--output", "out", "--initial", "none", "--mask", mask], *words)


OPTIONS = [
    ["--output", ""], ["--weights", ""], ["--reference", "\u00b2"], ["--reference", "-1"], ["--spacing-mm", "nan"],
    ["--spacing-mm", "0"], ["--spacing-mm", "1e-300"], ["--spacing-mm", "1_0"], ["--std", "0"], ["--std", "1000000"],
    ["--device", "banana"], ["--device", "cuda:99"], ["--threads", "0"], ["--effort", "best", "--no-refine"],
    ["--quiet", "--verbose"], ["--set", "device=cpu"], ["--set", "spacing_mm="], ["--set", "spacing_mm=1:30"],
    ["--set", "std_draws=010"], ["--set", "std_draws=1_0"], ["--set", "noise=0.02", "--set", "noise=0.03"],
    ["--set", "spacing_mm=3", "--spacing-mm", "2"], ["--set", "std_draws=3", "--std", "2"],
    ["--spacing-mm", "2", "--spacing-mm", "3"], ["--set", "integration_steps=1000", *FAST],
    ["--overlay", "effort/best", "--no-refine"], ["--overlay", "likelihoods/low_rank", "--overlay",
    "likelihoods/group_nmi"], ["--overlay", "modes/sample"], ["--overlay", "modes/transport"],
    ["--series-description", "*dyn*"],
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_options_that_mean_nothing(options, series, refused):
    output = [] if "--output" in options else ["--output", "out"]
    name = "integration_steps" if "integration_steps=1000" in options else options[0]
    refused(["register", *series[:2], *output, *options], name)


def test_an_option_twice_with_one_value_is_no_contradiction():
    assert make_parser().parse_args(["register", "a", "--std", "2", "--std", "2"]).std == 2


@pytest.mark.parametrize("name", ["x" * 300, "f/out", "a/" + "x" * 300])
def test_output_folders_that_cannot_be_made(name, series, tmp_path, refused):
    (tmp_path / "f").write_text("", encoding="utf-8")
    (tmp_path / "a").mkdir()
    refused(["register", *series[:2], "--output", name, *FAST], name)


def test_a_mask_of_a_few_voxels(series, tmp_path, refused):
    scan = nibabel.load(series[0])
    mask = np.zeros(scan.shape, np.uint8)
    mask[10:12, 10:12, 10] = 1
    nibabel.save(nibabel.Nifti1Image(mask, scan.affine), tmp_path / "m.nii.gz")
    refused(
        ["register", *series[:2], "--output", "out", "--initial", "none", "--mask", "m.nii.gz"], "got 4 on the grid"
    )


@pytest.mark.parametrize("labels", [["l0"], ["l0", "l1", "l0"], ["l0", "half"], ["l0", "none"], ["l0", "away"]])
def test_label_maps_are_checked_before_training(labels, study, refused):
    scan = nibabel.load(study / "s0" / "t00.nii.gz")
    away = scan.affine + 900 * np.eye(4)[:, :1] @ np.eye(4)[3:]
    ones = np.ones(scan.shape, np.float32)
    for name, data, affine in (
        ("l0", ones, scan.affine), ("l1", ones, scan.affine), ("half", 0.5 * ones, scan.affine),
        ("none", 0 * ones, scan.affine), ("away", ones, away),
    ):  # fmt: skip
        nibabel.save(nibabel.Nifti1Image(data, affine), study / f"{name}.nii.gz")
    entry = {**IMAGES, "labels": [f"{name}.nii.gz" for name in labels]}
    (study / "dataset.json").write_text(json.dumps({"training": [entry], "validation": [entry]}), encoding="utf-8")
    words = ["labels", f"got {len(labels)}"] if len(labels) != 2 else [f"study/{labels[1]}.nii.gz"]
    refused(["train", "--dataset", "study", "--output", "out"], *words)


def test_results_are_not_written_among_the_inputs(series, tmp_path, refused):
    (tmp_path / "scans").mkdir()
    for file in series[:2]:
        shutil.copy(file, tmp_path / "scans")
    os.symlink("scans", tmp_path / "link")
    scans = [f"scans/{Path(file).name}" for file in series[:2]]
    for inputs, output in [(["scans"], "scans"), (scans, "scans"), (scans, "link"), (["link"], "scans/../scans")]:
        refused(["register", *inputs, "--output", output], "--output", "contains")
    refused(["evaluate", "--dataset", "scans", "--output", "scans"], "--output")
    refused(["train", "--dataset", "scans", "--output", "link"], "--output")
    refused(["train", "--dataset", "scans", "--output", "link/new"], "--output")
    Path("dicom").mkdir()
    for file in scans:
        shutil.copy(file, "dicom")
    Path("report.json").write_text(
        json.dumps({"files": ["dicom"]}), encoding="utf-8"
    )  # it would be removed with the earlier result
    for more in ([], ["--dry-run"]):
        refused(["register", "dicom", "--output", ".", *FAST, *more], "expected an output folder that holds no input")
    # A folder around the one that holds the scans is none of theirs.
    refused(["register", "scans", "--output", ".", "--weights", "gone.pt", *FAST], "weights: gone.pt")


@pytest.fixture(scope="module")
def field(phantom, tmp_path_factory):
    """A written field on the phantom's grid."""
    file = tmp_path_factory.mktemp("field") / "ddf_00.nii.gz"
    image = nibabel.Nifti1Image(np.zeros((28, 24, 20, 1, 3), np.float32), phantom["affine"].numpy())
    image.header.set_intent("vector")
    nibabel.save(image, file)
    return str(file)


def test_results_of_one_name_are_refused(field, series, tmp_path, refused):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        shutil.copy(series[0], tmp_path / folder / "x.nii.gz")
    refused(["apply", field, "a/x.nii.gz", "b/x.nii.gz", "--output", "out"], "b/x.nii.gz", "a/x.nii.gz")
    shutil.copy(field, tmp_path / "b" / "t00.nii.gz")
    refused(["apply", "b/t00.nii.gz", series[0], "--output", "b"], "would replace the input")
    refused(["apply", field, series[0], "gone.nii.gz", "--output", "out"], "gone.nii.gz")


def test_names_keep_their_dots(field, series, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["scan.t1.nii.gz", "scan.t2.nii.gz", "1.2.840.113.NII.GZ"]
    for name in names:
        shutil.copy(series[0], name)
    assert main(["apply", field, *names, "--output", "out"]) == 0
    assert sorted(os.listdir("out")) == ["1.2.840.113.nii.gz", "scan.t1.nii.gz", "scan.t2.nii.gz"]


@pytest.mark.parametrize("name", ["p.csv", "p.txt", "p.fcsv", "p.mrk.json"])
@pytest.mark.parametrize("content", ["", "x,y,z\n", "1,2\n", "1,2,3\n4\n", "a,b,c\n", "nan,1,2\n", "point\n"])
def test_points_that_are_none(name, content, field, tmp_path, refused):
    (tmp_path / name).write_text(content, encoding="utf-8")
    refused(["apply", field, name, "--output", "out"], name)


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
}


@pytest.mark.parametrize("command", ["evaluate", "train"])
@pytest.mark.parametrize("kind", LISTS)
def test_data_lists_that_are_none(kind, command, study, refused):
    (study / "dataset.json").write_text(json.dumps(LISTS[kind]), encoding="utf-8")
    refused([command, "--dataset", "study", "--output", "out"], "study")


@pytest.mark.parametrize("command", ["evaluate", "train"])
def test_a_broken_series_is_noticed_before_the_work_begins(command, study, refused):
    (study / "s1" / "t01.nii.gz").write_bytes(gzip.compress(b"no image"))
    refused([command, "--dataset", "study", "--output", "out"], "s1/t01.nii.gz")


def test_a_reference_that_a_series_lacks_is_noticed_before_the_work_begins(study, refused):
    refused(["train", "--dataset", "study", "--output", "out", "--set", "reference=5"], "reference", "3 timepoints")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["phantom_size_voxels=[1024,1024,1024]"], "fit into"),
        (["phantom_size_voxels=[16,16,16]", "phantom_max_motion_voxels=8"], "half the size"),
    ],
)
def test_phantoms_that_cannot_be_made(settings, words, refused):
    options = [word for setting in settings for word in ("--set", setting)]
    refused(["evaluate", "--phantoms", "--output", "out", *options], "--set phantom_", words)


@pytest.mark.parametrize("command", ["evaluate", "train"])
def test_artificial_series_are_asked_for(command, refused):
    refused([command, "--output", "out"], "--phantoms")
    refused([command, "--dataset", "", "--output", "out"], "--dataset")


def test_a_training_that_cannot_start_leaves_nothing(study, refused):
    refused(["train", "--dataset", "study", "--output", "out", "--set", "spacing_mm=500"], "spacing_mm", "4 voxels")
    assert not Path("out").exists()
    curves = Path("out/tensorboard/events.out.tfevents.1")  # of another training
    curves.parent.mkdir(parents=True)
    curves.touch()
    assert main(["train", "--dataset", "study", "--output", "out", "--set", "spacing_mm=500"]) == 2 and curves.exists()


@pytest.mark.parametrize(
    ("command", "name"), [("evaluate --dataset study", "metrics.csv"), ("register study/s0", "report.html")]
)
def test_folders_with_the_names_of_results_are_noticed_before_the_work_begins(
    command, name, study, refused, monkeypatch
):
    monkeypatch.setattr("groupmorph_monai.workflow.RegistrationInferer.__call__", None)
    (Path("out") / name).mkdir(parents=True)
    refused([*command.split(), "--output", "out"], f"out/{name}: expected a file or none, got a folder")


def test_a_series_of_fewer_timepoints_than_each_iteration_wants(study, refused):
    settings = ["--set", "timepoints_least=4", "--set", "timepoints_most=5"]
    refused(["train", "--dataset", "study", "--output", "out", *settings], "timepoints_least", "3 timepoints of s0")


def test_landmarks_far_outside_of_their_scan(study, refused):
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
def test_settings_of_training_out_of_range(setting, refused):
    refused(["train", "--phantoms", "--output", "out", "--set", setting], "--set")


def test_kinetics_of_what_tells_no_times_or_has_too_few_scans(series, tmp_path, refused):
    options = ["--output", "out", "--kinetics", *FAST]
    refused(["register", *series, *options], "--kinetics: expected a series with acquisition times", "side-cars")
    files = [shutil.copy(file, tmp_path) for file in series]
    for k, file in enumerate(files):
        Path(file.removesuffix(".nii.gz") + ".json").write_text(
            json.dumps({"AcquisitionTime": f"10:0{k}:00"}), encoding="utf-8"
        )
    refused(["register", *files[:2], *options], "--kinetics: expected 4 scans or more for tofts, got 2")
    refused(["register", *files, *options, "--set", "kinetics_model=patlak"], "kinetics_model", "tofts")


@pytest.mark.parametrize("data", ["gone", "/dev/null", "none"])
def test_a_table_of_no_series_is_not_begun(data, tmp_path, refused):
    (tmp_path / "none").mkdir()
    refused(["benchmark", "paper", "--data", data], "expected", data)


@pytest.mark.parametrize("suite", ["likelihoods", "breathing", "scaling", "synthetic", "full_size", "memory"])
def test_a_suite_notices_wrong_weights_before_minutes_of_work(suite, series, refused):
    refused(["benchmark", suite, "--weights", series[0]], "weights", series[0])


def test_a_page_of_measurements_is_not_written_among_the_scans(series, refused):
    refused(["benchmark", "warped", "--series", *series[:2], "--output", str(Path(series[0]).parent)], "--output")
