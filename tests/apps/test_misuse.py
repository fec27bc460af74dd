"""Misuse of `groupmorph register` ends with one line and exit code 2, before anything runs or is written."""

import gzip
import os
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from image_files import write_nifti
from json_files import write_json

from groupmorph_monai.apps.arguments import make_parser
from groupmorph_monai.apps.configs import bundle_root
from groupmorph_monai.apps.overlays import check_overlays
from groupmorph_monai.apps.run import split_overlays
from groupmorph_monai.networks import MomentumNet

SHIPPED = Path(__file__).parents[2] / "bundle" / "models" / "model.pt"
FAST = ["--no-refine", "--initial", "none"]
TO = ["--output", "out"]


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
    """Change a byte in the middle, which PyTorch does not detect."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


WEIGHTS = {
    "nothing": (b"", "empty file"),
    "text": (b"hello", "different file"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid", "'git lfs pull'"),
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
    "another network": (lambda: MomentumNet().state_dict(), "weights: expected weights of a GroupSetVAE"),
    "one missing": (lambda: state(lambda w: w.pop(next(iter(w)))), "GroupSetVAE"),
    "one too many": (lambda: state(lambda w: w.update(a=torch.ones(1))), "GroupSetVAE"),
    "whole numbers": (lambda: {name: value.int() for name, value in state(len).items()}, "got int32"),
    "complex numbers": (lambda: {name: value.cfloat() for name, value in state(len).items()}, "got complex64"),
    "no data": (lambda: {name: value.to("meta") for name, value in state(len).items()}, "a tensor without data"),
    "sparse numbers": (lambda: {name: value.to_sparse() for name, value in state(len).items()}, "got sparse_coo"),
    "zeros": (lambda: {name: torch.zeros_like(value) for name, value in state(len).items()}, "all zero"),
    "zero kernels": (lambda: {name: value * (value.ndim == 1) for name, value in state(len).items()}, "all zero"),
    "numbers for names": (lambda: dict(enumerate(state(len).values())), "state dict"),
    "another byte": (lambda: one_other_byte(SHIPPED.read_bytes()), "wrong checksum"),
    "a scan": (gzip.compress(b"no weights"), "a different file"),
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights(kind, series, tmp_path, refused):
    content, words = WEIGHTS[kind]
    content = content() if callable(content) else content
    file = tmp_path / "w.pt"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    refused(["register", *series[:2], *TO, "--weights", "w.pt", *FAST], "weights", words)


def test_weights_absent_or_a_script(series, tmp_path, refused):
    command = ["register", *series[:2], *TO, "--weights", "w.pt", *FAST]
    refused(command, "weights: w.pt: expected a file, found none")
    device = ["/dev/zero" if word == "w.pt" else word for word in command]
    refused(device, "weights: /dev/zero: expected a file, got a pipe or device")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "w.pt")
    refused(command, "weights", "TorchScript")


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
def test_own_overlay(kind, series, tmp_path, refused):
    content, words = OVERLAYS[kind]
    (tmp_path / "own.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(["register", *series[:2], *TO, "--overlay", "own.yaml"], "--overlay own.yaml", words)


@pytest.mark.parametrize("name", ["train", "inference", "", "../configs/data/lung_ct", "modes/surfaces", "/etc/passwd"])
def test_overlay_name(name, series, refused):
    refused(["register", *series[:2], *TO, "--overlay", name], "--overlay", name)


@pytest.mark.parametrize("command", ["register", "evaluate"])
@pytest.mark.parametrize("name", ["modes/bidirectional", "modes/surfaces", "priors/temporal", "recipes/one_core"])
def test_overlay_of_training(name, command, series, refused):
    inputs = series[:2] if command == "register" else ["--phantoms"]
    refused([command, *inputs, *TO, "--overlay", name], f"--overlay {name}", "does not use; omit it")


@pytest.mark.parametrize("name", ["data/affine_phantoms", "data/breast", "data/phantom_pairs", "data/phantom_small"])
def test_phantoms_of_a_registration(name, series, refused):
    refused(["register", *series[:2], *TO, "--overlay", name], f"--overlay {name}", "does not use; omit it")


@pytest.mark.parametrize("model", ["models/avsm", "models/avsm_affine", "models/krebs_cvae"])
def test_prior_of_a_model_with_its_own(model, refused):
    overlays = ["--overlay", model, "--overlay", "priors/temporal"]
    refused(["train", "--phantoms", *TO, *overlays], "--overlay priors/temporal: expected a model with the def", model)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("register", ["--set", "noise=0.1", "--overlay", "likelihoods/low_rank"]),
        ("register", ["--set", "static_share=0.1", "--no-refine"]),
        ("register", ["--set", "network_std_factor=2", "--std", "2"]),
        ("register", ["--set", "posterior_smoothing_voxels=2"]),
        ("register", ["--set", "network_std_factor=2", "--no-refine"]),
        ("register", ["--set", "initial_alignment_voxels=[10,20]", "--initial", "none"]),
        ("evaluate", ["--set", "initial_alignment_iterations=1", "--set", "initial_alignment=none"]),
        ("train", ["--set", "motion_voxels=3", "--overlay", "modes/surfaces"]),
        ("train", ["--set", "kl_weight_factor=0.9", "--overlay", "models/avsm_affine"]),
        ("evaluate", ["--set", "write_fields=full"]),
    ],
)
def test_setting_without_effect(command, options, series, refused):
    inputs = series[:2] if command == "register" else ["--phantoms"]
    name = options[1].split("=")[0]
    refused([command, *inputs, *TO, *options], f"--set {name}: expected a setting with an effect")


def test_overlay_whose_settings_another_uses():
    check_overlays("inference", ["models/avsm_affine", "data/affine_phantoms"])  # window_extents


def test_two_alignments(series, refused):
    words = "expected one alignment of modes/, got modes/all_moving and modes/all_to_one", "--reference"
    refused(["register", *series, *TO, "--overlay", "modes/all_moving", "--reference", "1"], *words)
    refused(["train", "--phantoms", *TO, "--overlay", "modes/all_moving", "--overlay", "modes/all_to_one"], *words)


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("data/lungs", "did you mean data/lung_ct?"),
        ("lung_ct", "did you mean data/lung_ct?"),
        ("zzz", "see 'groupmorph overlays'"),
    ],
)
def test_an_unknown_overlay_is_refused_with_the_one_that_may_be_meant(name, cure, series, refused):
    words = f"--overlay: expected an overlay or a YAML file of your own settings, got '{name}'; {cure}"
    refused(["register", *series[:2], *TO, "--overlay", name], words)


def test_a_shipped_overlay_given_as_a_path_is_the_same(tmp_path):
    shipped = bundle_root() / "configs" / "effort" / "fast.yaml"
    copy = tmp_path / "effort" / "fast.yaml"
    copy.parent.mkdir()
    copy.write_bytes(shipped.read_bytes())
    own = tmp_path / "effort" / "best.yaml"
    own.write_text("noise: 0.03\n", encoding="utf-8")
    overlays = [str(shipped), str(shipped.with_suffix("")), str(copy), str(own), "modes/all_to_one"]
    assert split_overlays(overlays) == (["effort/fast"] * 3 + ["modes/all_to_one"], [own])


def test_an_output_folder_that_is_a_file(series, tmp_path, refused):
    (tmp_path / "out.txt").write_text("mine", encoding="utf-8")
    refused(
        ["register", *series[:2], "--output", "out.txt"], "--output: expected a folder, got the file out.txt; choose"
    )
    assert (tmp_path / "out.txt").read_text(encoding="utf-8") == "mine"


def test_scans_behind_a_mask_are_refused_with_the_cure(series, refused):
    command = ["register", *series[:3], "--mask", *series[:2], *TO]
    refused(
        command,
        "mask or region: expected one file, or one for each of the 3 scans, got 2; list as many, and the scans before",
    )


@pytest.mark.parametrize("cut", [1, 4, 8, 100])
def test_truncated_gzip(cut, series, tmp_path, refused):
    (tmp_path / "cut.nii.gz").write_bytes(Path(series[0]).read_bytes()[:-cut])
    refused(["register", series[1], "cut.nii.gz", *TO], "cut.nii.gz")


def test_gzip_with_wrong_checksum(series, tmp_path, refused):
    content = bytearray(Path(series[0]).read_bytes())
    content[-6] ^= 0xFF
    (tmp_path / "bad.nii.gz").write_bytes(content)
    refused(["register", series[1], "bad.nii.gz", *TO], "bad.nii.gz", "CRC")


@pytest.mark.parametrize("more", [b"more", 50 * b"more"])
def test_bytes_after_a_gzip_file_are_ignored(more, series, tmp_path):
    from groupmorph_monai.data.reading.readers import read_image

    (tmp_path / "more.nii.gz").write_bytes(Path(series[0]).read_bytes() + more)
    np.testing.assert_array_equal(read_image(tmp_path / "more.nii.gz").data, read_image(series[0]).data)


@pytest.mark.parametrize("kind", ["empty", "negative", "elsewhere", "missing", "no name"])
def test_mask_without_voxels(kind, series, tmp_path, refused):
    scan = nibabel.load(series[0])
    affine, value = scan.affine.copy(), {"empty": 0, "negative": -1}.get(kind, 1)
    affine[:3, 3] += 500 * (kind == "elsewhere")
    if kind not in ("missing", "no name"):
        write_nifti(tmp_path / "m.nii.gz", np.full(scan.shape, value, np.float32), affine)
    mask = "" if kind == "no name" else "m.nii.gz"
    words = ["--mask" if kind == "no name" else mask, *(["does not overlap the scan"] if kind == "elsewhere" else [])]
    refused(["register", *series[:2], *TO, "--initial", "none", "--mask", mask], *words)


def test_mask_of_a_few_voxels(series, tmp_path, refused):
    scan = nibabel.load(series[0])
    mask = np.zeros(scan.shape, np.uint8)
    mask[10:12, 10:12, 10] = 1
    write_nifti(tmp_path / "m.nii.gz", mask, scan.affine)
    refused(["register", *series[:2], *TO, "--initial", "none", "--mask", "m.nii.gz"], "got 4 on the grid")


def test_mask_that_no_stage_uses(series, refused):
    refused(["register", *series, *TO, *FAST, "--mask", series[0]], "--mask")


OPTIONS = [
    ["--output", ""], ["--weights", ""], ["--reference", "\u00b2"], ["--reference", "-1"], ["--spacing-mm", "nan"],
    ["--spacing-mm", "0"], ["--spacing-mm", "1e-300"], ["--spacing-mm", "1_0"], ["--std", "0"], ["--std", "1000000"],
    ["--device", "banana"], ["--device", "cuda:99"], ["--threads", "0"], ["--effort", "best", "--no-refine"],
    ["--quiet", "--verbose"], ["--set", "device=cpu"], ["--set", "spacing_mm="], ["--set", "spacing_mm=1:30"],
    ["--set", "std_draws=010"], ["--set", "std_draws=1_0"], ["--set", "std_draws=-3"], ["--set", "passes=0"],
    ["--set", "noise=0.02", "--set", "noise=0.03"],
    ["--set", "spacing_mm=3", "--spacing-mm", "2"], ["--set", "std_draws=3", "--std", "2"],
    ["--spacing-mm", "2", "--spacing-mm", "3"], ["--set", "integration_steps=1000", *FAST],
    ["--overlay", "effort/best", "--no-refine"], ["--overlay", "likelihoods/low_rank", "--overlay",
    "likelihoods/group_nmi"], ["--overlay", "modes/sample"], ["--overlay", "modes/transport"],
    ["--series-description", "*dyn*"],
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_option_values(options, series, refused):
    output = [] if "--output" in options else TO
    name = "integration_steps" if "integration_steps=1000" in options else options[0]
    refused(["register", *series[:2], *output, *options], name)


@pytest.mark.parametrize("option", ["--mask", "--region"])
def test_options_with_several_values_given_twice(option, series, refused):
    refused(
        ["register", *series, *TO, option, series[0], option, series[1]], f"{option}: expected all values after one"
    )


def test_reference_of_an_alignment_to_the_mean(series, refused):
    refused(["register", *series, *TO, "--set", "reference=1", *FAST], "reference", "--reference 1")


@pytest.mark.parametrize("name", ["mean.nii.gz", "warped.nii.gz", "coverage.nii.gz", "report.json"])
def test_a_file_that_no_registration_wrote_is_not_replaced(name, series, tmp_path, refused):
    file = tmp_path / "out" / name
    file.parent.mkdir()
    file.write_text('{"tool": "mine"}', encoding="utf-8")
    refused(["register", *series[:2], *TO], f"{file.relative_to(tmp_path)}: expected no file that", "choose another")
    assert file.read_text(encoding="utf-8") == '{"tool": "mine"}'


def test_output_among_overlay_and_weights(series, tmp_path, refused):
    own = tmp_path / "out" / "report.json"
    own.parent.mkdir()
    own.write_text("noise: 0.02", encoding="utf-8")
    weights = shutil.copy(SHIPPED, tmp_path / "out" / "mean.nii.gz")
    for option, file in (("--overlay", own), ("--weights", weights)):
        content = Path(file).read_bytes()
        refused(["register", *series, *TO, option, str(file), *FAST], "holds no input", str(file))
        assert Path(file).read_bytes() == content


def test_absent_reference(series, refused):
    refused(["register", *series[:2], *TO, "--reference", "9"], "reference: expected one of the series' 2 timepoints")


def test_option_twice_with_one_value_is_accepted():
    assert make_parser().parse_args(["register", "a", "--std", "2", "--std", "2"]).std == 2


@pytest.mark.parametrize("name", ["~", "~/out", "~someone/out", "s3://bucket/out"])
def test_output_folder_that_is_no_path_of_this_machine(name, series, tmp_path, refused):
    refused(["register", *series[:2], f"--output={name}"], "--output: expected a path", name, "; ")
    refused(["combine", "out", "--from", "0", "--to", "1", f"--output={name}/t.h5"], "--output: expected a path", name)
    (tmp_path / name).mkdir(parents=True)  # a folder that somebody has named so
    assert make_parser().parse_args(["register", "a", f"--output={name}"]).output == name


@pytest.mark.parametrize("name", ["x" * 300, "f", "f/out", "a/" + "x" * 300])
def test_output_folder_that_cannot_be_made(name, series, tmp_path, refused):
    (tmp_path / "f").write_text("", encoding="utf-8")
    (tmp_path / "a").mkdir()
    refused(["register", *series[:2], "--output", name, *FAST], name)


def test_names_that_itk_cannot_open(series, tmp_path, refused):
    folder = tmp_path / os.fsdecode(b"\xff")
    refused(["register", *series[:2], "--output", str(folder), "--transforms", *FAST], "expected names in UTF-8")
    folder.mkdir()
    (folder / "t.mha").touch()
    refused(["register", series[0], str(folder / "t.mha"), *TO, *FAST], "expected names in UTF-8")


@pytest.mark.parametrize("option", ["register", "--mask", "--region"])
def test_a_file_with_a_slash(option, series, refused):
    named = [f"{series[2]}/"] if option == "register" else [option, f"{series[2]}/"]
    refused(["register", *series[:2], *named, *TO], f"{series[2]}/: expected a file or folder", "omit the slash")


def test_output_among_the_inputs(series, tmp_path, refused):
    (tmp_path / "scans").mkdir()
    for file in series[:2]:
        shutil.copy(file, tmp_path / "scans")
    os.symlink("scans", tmp_path / "link")
    scans = [f"scans/{Path(file).name}" for file in series[:2]]
    for inputs, output in [(["scans"], "scans"), (scans, "scans"), (scans, "link"), (["link"], "scans/../scans")]:
        refused(
            ["register", *inputs, "--output", output], "--output", "contains" if inputs == scans else "is the folder"
        )
    refused(["evaluate", "--dataset", "scans", "--output", "scans"], "--output")
    refused(["train", "--dataset", "scans", "--output", "link"], "--output")
    refused(["train", "--dataset", "scans", "--output", "link/new"], "--output")
    Path("dicom").mkdir()
    for file in scans:
        shutil.copy(file, "dicom")
    # An earlier result that lists the input among its files, which are removed with it.
    write_json(Path("report.json"), {"files": ["dicom"]})
    for more in ([], ["--dry-run"]):
        refused(["register", "dicom", "--output", ".", *FAST, *more], "expected an output folder that holds no input")
    # A parent folder of the scans is accepted.
    refused(["register", "scans", "--output", ".", "--weights", "gone.pt", *FAST], "weights: gone.pt")


def test_kinetics_without_times_or_scans(series, tmp_path, refused):
    options = [*TO, "--kinetics", *FAST]
    refused(["register", *series, *options], "--kinetics: expected a series with acquisition times", "sidecars")
    files = [shutil.copy(file, tmp_path) for file in series]
    for k, file in enumerate(files):
        write_json(Path(file.removesuffix(".nii.gz") + ".json"), {"AcquisitionTime": f"10:0{k}:00"})
    refused(["register", *files[:2], *options], "--kinetics: expected 4 scans or more for tofts, got 2")
    refused(["register", *files, *options, "--set", "kinetics_model=patlak"], "kinetics_model", "tofts")
