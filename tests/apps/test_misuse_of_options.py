"""Misuse of options and settings of any command ends with one line and exit code 2, before anything runs or is
written."""

import os
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from groupmorph_monai.apps import commands

MODELS = Path(__file__).parents[2] / "bundle" / "models"
TO = ["--output", "out"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--quiet register a b", "--quiet: unknown option; write options after the command;"),
        ("benchmark --seeds 1 synthetic", "--seeds: unknown option of benchmark; write options after the command;"),
        ("register a b \u2013output out", "\u2013output: expected --output with two hyphens, got a dash"),
        ("register a b -\u2014output=out", "-\u2014output: expected --output with two hyphens, got a dash"),
        ("register a b --output out \u2212reference 1", "\u2212reference: expected --reference with two hyphens"),
        ("evaluate --phantoms --effort fast", "--effort: unknown option of evaluate; see"),
        ("register a b --output aligned.nii.gz", "--output: expected a folder for several files, got 'aligned.nii.gz'"),
        ("apply f a --output a.csv", "--output: expected a folder for several files, got 'a.csv'"),
        ("evaluate --phantoms --output table.CSV", "--output: expected a folder for several files, got 'table.CSV'"),
        ("combine d --from 0 --to 1 --output x.Nii.gz", "--output: expected a name that ends in .nii.gz, .nii or .h5"),
        ("combine d --from 0 --to 1 --output x.nii.gz/", "--output: expected a name that ends in .nii.gz, .nii or .h5"),
        ("combine d --from 0 --to 1 --output d/.nii.gz", "--output: expected a name that ends in .nii.gz, .nii or .h5"),
        ("combine d --from 1 --to 1 --output x.h5", "--to: expected another scan than --from, got 1 for both"),
        ("benchmark verdicts --seeds 1 2 1", "--seeds: expected different numbers, got 1 twice; omit one"),
        ("benchmark paper --seeds 1 1", "--seeds: expected different numbers, got 1 twice; omit one"),
        (
            "benchmark paper --output ../out --data . --seeds 4",
            "--seeds: expected an option with an effect, got one for synthetic",
        ),
        (
            "benchmark paper --output ../out --data . --size 16 16 16",
            "--size: expected an option with an effect, got one for synth",
        ),
        ("benchmark paper --data breast --timepoints 7", "--timepoints: expected at most 6 with --data breast, got 7"),
        ("benchmark paper --overlay modes/sample", "--overlay modes/sample: expected an overlay for registration"),
        ("benchmark paper --overlay recipes/one_core", "--overlay recipes/one_core: expected an overlay for inference"),
        ("cohort s --output out --shard 1/2 --workers 4", "--workers: not allowed together with --shard"),
        ("evaluate --phantoms --shard 1/2 --memory-gb 4", "--memory-gb: not allowed together with --shard"),
        ("cohort s --output out --scheduler tcp://a:99999", "--scheduler: expected an address such as tcp://host:8786"),
        ("cohort s --output out --scheduler tcp://a:1 --workers 4", "--workers: not allowed together with --scheduler"),
        ("apply f a.csv b.mrk.json --output out --label", "--label: expected a label map among the files, got points"),
        ("train --phantoms --series-description x", "--series-description: expected an option with an effect"),
        (
            "evaluate --phantoms --set held_out=s0",
            "--set held_out: expected an option with an effect, got one for --dat",
        ),
        ("evaluate --phantoms --set split=training", "--set split: expected an option with an effect"),
        (
            "evaluate --dataset . --overlay effort/no_refine --set phantoms=3",
            "--set phantoms: expected an option with an effect, got one for --phantoms with --dataset",
        ),
        ("train --phantoms --set phantom_share=0.5", "--set phantom_share: expected an option with an effect"),
        (
            "train --dataset d --set phantoms_training=5",
            "--set phantoms_training: expected an option with an effect, got",
        ),
    ],
)
def test_options_that_make_no_sense(words, message, refused):
    refused(words.split(), message)


@pytest.mark.parametrize(
    "option",
    ["--spacing-mm={}", "--std={}", "--reference={}", "--device={}", "--set={}", "--set={}=1", "--set=spacing_mm={}"],
)
def test_a_long_value_is_not_repeated_in_full(option, series, refused):
    refused(["register", *series[:2], *TO, option.format(5000 * "1")], option.partition("=")[0], "1...1")


@pytest.mark.parametrize("pattern", ["", " "])
@pytest.mark.parametrize("command", ["register scans", "cohort s", "evaluate --dataset d", "train --dataset d"])
def test_empty_pattern(command, pattern, refused):
    words = "--series-description: expected a pattern", "is a shell variable empty?"
    refused([*command.split(), *TO, "--series-description", pattern], *words)


def test_line_of_a_windows_script(series, refused):
    refused(
        ["register", *series[:2], "--output", "out\r"], "--output: expected a path, got 'out\\r' with the end of a W"
    )


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("t*.nii.gz", "check the path, and omit quotes, so that the shell expands *, ~ and $"),
        ("~/t0.nii.gz", "check the path, and omit quotes"),
        ("$DATA/t0.nii.gz", "check the path, and omit quotes"),
        ("https://example.org/t0.nii.gz", "download the file first"),
        ("t0.nii.gz;t1.nii.gz", "separate scans by spaces"),
        ("my", "check the path, and quote paths with spaces"),
    ],
)
def test_path_that_does_not_exist(name, cure, series, refused):
    refused(["register", series[0], name, *TO], f"got a path that does not exist; {cure}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["weights=w.pt"], "got 'weights'; use --weights"),
        (["output_dir=x"], "got 'output_dir'; use --output"),
        (["mask=m.nii.gz"], "got 'mask'; use --mask"),
        (["initial_alignment_voxels=[48,24]"], "expected the coarse grid before the fine one, got [48, 24]"),
        (["percentile_upper=0.5"], "--set percentile_lower, percentile_upper: expected the first less than the second"),
        (["adapt_prior=false", "prior_factor=3"], "--set prior_factor: expected a setting with an effect"),
        (["stationary_parts=false", "static_share=0.1"], "--set static_share: expected a setting with an effect"),
        (["kinetics_t10_s=1.2"], "--set kinetics_t10_s: expected a setting with an effect"),
    ],
)
def test_settings_that_contradict_each_other_or_have_no_effect(settings, message, series, refused):
    refused(["register", *series[:2], *TO, *[word for text in settings for word in ("--set", text)]], message)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("window_weights", "[1.0]", "--set window_weights: expected one weight for each of the 2 window_extents"),
        ("window_weights", "[0, 0]", "and one above 0, got [0, 0]"),
        ("smoothing_weights", "[0.5, 0.5]", "expected one weight for each of the 5 smoothing_widths"),
    ],
)
def test_weights_of_a_list(name, values, message, series, refused):
    refused(["register", *series[:2], *TO, "--overlay", "models/avsm", "--set", f"{name}={values}"], message)


def test_phantoms_with_too_few_timepoints(refused):
    settings = ["--set", "phantom_timepoints=2", "--set", "timepoints_least=3"]
    refused(
        ["train", "--phantoms", *TO, *settings], "--set timepoints_least: expected at most phantom_timepoints, 2, got"
    )
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "got no settings"),
        ("noise: 0.1\n\tstd_draws: 3\n", "in line 2"),
        (
            "noise: 0.1\nadapt_prior: false\nprior_factor: 3\n",
            "--overlay own.yaml: prior_factor: expected a setting with",
        ),
    ],
)
def test_own_overlay(content, message, series, tmp_path, refused):
    (tmp_path / "own.yaml").write_text(content, encoding="utf-8")
    refused(["register", *series[:2], *TO, "--overlay", "own.yaml"], "--overlay own.yaml", message)


def test_weights_of_a_dry_run(series, tmp_path, refused):
    command = ["register", *series[:2], *TO, "--dry-run", "--weights"]
    refused([*command, str(MODELS / "avsm.pt")], "weights: expected weights of a GroupSetVAE with these settings")
    refused([*command, str(MODELS)], "expected a file, got a folder; use a file in it, such as model_best.pt")


def test_demo_in_a_folder_of_scans(series, tmp_path, refused):
    scan = tmp_path / "mine" / "series" / "t00.nii.gz"
    scan.parent.mkdir(parents=True)
    shutil.copy(series[0], scan)
    content = scan.read_bytes()
    refused(
        ["demo", "--output", "mine"], "--output: expected a folder without other scans", "t00.nii.gz; choose another"
    )
    assert scan.read_bytes() == content
    (tmp_path / "other" / "report.html").mkdir(parents=True)
    refused(["demo", "--output", "other"], "other/report.html: expected a file or none, got a folder")


def test_demo_again(tmp_path, monkeypatch):
    """Run in the folder of an earlier demo with the same scans."""
    monkeypatch.chdir(tmp_path)
    registered = []

    def register(files, output):
        registered.append(files)
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            commands.run_demo("demo", register)
    assert len(registered) == 2 and all(Path(file).is_file() for file in registered[1])


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.symlink_to("missing.nii.gz")], ids=["pipe", "broken link"]
)
def test_no_file_in_place_of_a_combined_transform(make, tmp_path, refused):
    make(tmp_path / "transform.nii.gz")
    command = ["combine", "aligned", "--from", "0", "--to", "1", "--output", "transform.nii.gz"]
    refused(command, "--output: expected a new file or an earlier transform, got transform.nii.gz, another file")
    assert os.path.lexists(tmp_path / "transform.nii.gz") and not (tmp_path / "transform.nii.gz").is_file()


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.h5"])
def test_scan_in_place_of_a_combined_transform(name, series, tmp_path, refused):
    file = Path(shutil.copy(series[0], tmp_path / name))
    content = file.read_bytes()
    command = ["combine", "aligned", "--from", "0", "--to", "1", "--output", name]
    refused(command, f"--output: expected a new file or an earlier transform, got {name}, another file")
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--reference", "9"], "reference: expected one of the series' 2 timepoints"),
        (["--no-refine", "--overlay", "effort/best"], "--overlay: expected one of effort/"),
        (["--std", "3", "--set", "std_draws=2"], "--set std_draws: conflicts with the option for the same setting"),
        (["--overlay", "modes/sample"], "--overlay modes/sample: expected an overlay for registration"),
        (["--spacing-mm", "3", "--set", "spacing_mm=2"], "--set spacing_mm: conflicts"),
    ],
)
def test_options_of_a_whole_study(options, message, series, tmp_path, refused):
    (tmp_path / "study.tsv").write_text(f"name\tscans\na\t{';'.join(series[:2])}\n", encoding="utf-8")
    refused(["cohort", "study.tsv", *TO, "--shard", "1/1", *options], message)
    assert not Path("out").exists()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_study_that_would_replace_other_files(kind, series, tmp_path, refused):
    (tmp_path / "study.tsv").write_text(f"name\tscans\na\t{';'.join(series[:2])}\n", encoding="utf-8")
    own = tmp_path / "mine" / "series" / ("a" if kind == "file" else "a/notes.txt")
    own.parent.mkdir(parents=True)
    own.write_text("mine", encoding="utf-8")
    words = "--output: expected no file or folder of another kind in place of a result", "mine/series/a; move it"
    refused(["cohort", "study.tsv", "--output", "mine", "--shard", "1/1"], *words)
    assert own.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(("masks", "message"), [("scans", "got the folder"), ("a;a;a", "the 2 scans, got 3")])
def test_masks_of_a_study(masks, message, series, tmp_path, refused):
    (tmp_path / "scans").mkdir()
    shutil.copy(series[0], tmp_path / "a")
    row = f"x\t{';'.join(series[:2])}\t{masks}"
    (tmp_path / "study.tsv").write_text(f"name\tscans\tmask\n{row}\n", encoding="utf-8")
    refused(["cohort", "study.tsv", *TO, "--shard", "1/1"], "study.tsv: line 2: mask: expected", message)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "p.csv",
            b"X (mm),Y (mm),Z (mm)\n1,2,3\n",
            "expected the columns x, y, z (or r, a, s; or l, p, s), all in mm, got",
        ),
        ("p.csv", b"x_cm,y_cm,z_cm\n1,2,3\n", "all in mm, got 'x_cm,y_cm,z_cm'; correct the header"),
        ("p.csv", "x,y,z\n1,2,3\n".encode("utf-16"), "expected points as text in UTF-8, got other bytes"),
        ("p.tsv", b"x\ty\tz\n1\t2\t3\n", "points need the ending .csv"),
    ],
)
def test_points(name, content, message, series, tmp_path, refused):
    image = nibabel.Nifti1Image(np.zeros((8, 8, 8, 1, 3), np.float32), np.eye(4))
    image.header.set_intent("vector")
    nibabel.save(image, tmp_path / "ddf_00.nii.gz")
    (tmp_path / name).write_bytes(content)
    refused(["apply", "ddf_00.nii.gz", name, *TO], name, message)
