"""The manifest, hashes and summary table of a study."""

import csv
import os

import nibabel as nib
import numpy as np
import pytest
from filelock import FileLock
from json_files import write_json

from groupmorph_monai.apps.arguments import make_parser
from groupmorph_monai.apps.cohort.clusters import check_installed
from groupmorph_monai.apps.cohort.folders import CohortFolder
from groupmorph_monai.apps.cohort.manifest import read_manifest
from groupmorph_monai.apps.cohort.registrations import REGISTRATIONS, register_options, registration_job
from groupmorph_monai.apps.cohort.study import _process_with_retries, settings_hash
from groupmorph_monai.apps.cohort.summary import summarise
from groupmorph_monai.apps.command_line import main
from groupmorph_monai.apps.configs import bundle_root
from groupmorph_monai.errors import InputError


@pytest.fixture
def study(tmp_path):
    """Write empty files as scans, which these tests only check for existence."""
    for name in ("a/t0.nii.gz", "a/t1.nii.gz", "b/t0.nii.gz", "mask.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"scan")
    return tmp_path


def manifest(study, *lines):
    file = study / "manifest.tsv"
    file.write_text("\n".join("\t".join(line) for line in lines) + "\n", encoding="utf-8")
    return file


@pytest.fixture(autouse=True)
def everything_is_installed(monkeypatch):
    monkeypatch.setattr("groupmorph_monai.apps.cohort.registrations.check_installed", lambda args: None)


def test_a_manifest_names_scans_and_options(study):
    file = manifest(
        study,
        ("name", "scans", "mask", "reference", "spacing_mm"),
        ("patient 1", "a", "", "", ""),
        ("# the second", "", "", "", ""),
        ("patient-2", "a/t1.nii.gz; b/t0.nii.gz", "mask.nii.gz", "1", "2.5"),
    )
    first, second = read_manifest(file, study / "out")
    assert (first.name, first.files, first.options) == ("patient 1", [str(study / "a")], {})
    assert second.files == [str(study / "a/t1.nii.gz"), str(study / "b/t0.nii.gz")]
    assert second.options == {"mask": [str(study / "mask.nii.gz")], "reference": "1", "spacing_mm": 2.5}


def test_all_mistakes_of_a_manifest_are_reported_before_anything_starts(study, capsys):
    file = manifest(
        study,
        ("name", "scans", "reference"),
        ("one", "a", ""),
        ("two", "absent.nii.gz", ""),
        ("ONE", "a", ""),
        ("../four", "a", ""),
        ("five", "a", "first"),
        ("six", "a"),
        ("seven", "", ""),
        ("eight", str(study), ""),
        ("Two", "b/t0.nii.gz;a/t0.nii.gz", ""),
        ("ä" * 101, "b", ""),
    )
    assert main(["cohort", str(file), "--output", str(study / "out")]) == 2
    lines = capsys.readouterr().err.splitlines()
    wanted = [
        f"line 3: scans: expected a file or a folder, got {study / 'absent.nii.gz'}, which does not exist; check the "
        "path",
        "line 4: name: expected a unique name, got 'ONE' as on line 2",
        "line 5: name: expected a folder name of at most 150 letters, digits, spaces and . _ - + @, got '../four'",
        "line 6: reference: expected 'mean' or the number of a timepoint from 0, got 'first'",
        "line 7: expected 3 cells separated by tabs, got 2",
        "line 8: scans: expected paths separated by ';', got ''",
        f"line 9: scans: expected files outside --output {study / 'out'}, got {study}; choose another folder",
        "line 10: name: expected a unique name, got 'Two' as on line 3",
        f"line 11: name: expected a folder name of at most 200 bytes, got '{'ä' * 101}' with 202; shorten it",
    ]
    assert lines[:-1] == [f"groupmorph: {file}: {line}" for line in wanted]
    assert lines[-1].startswith(
        f"groupmorph: {file}: expected valid lines, got 9 invalid; correct them, nothing was registered"
    )
    assert not (study / "out").exists()


def test_scans_listed_twice_need_other_options(study):
    header, options = ("name", "scans", "reference"), [("one", "a", ""), ("two", "a", "1"), ("three", "b", "")]
    assert len(read_manifest(manifest(study, header, *options), study / "out")) == 3
    (study / "link").symlink_to("a")
    with pytest.raises(InputError, match="line 5: scans: expected every series once, got the scans and opt.* line 2;"):
        read_manifest(manifest(study, header, *options, ("four", "link", "")), study / "out")


def test_a_line_of_a_thousand_scans(study):
    folder = study / ("x" * 200)
    folder.mkdir()
    scans = [folder / f"{k:04d}.nii.gz" for k in range(1000)]
    for scan in scans:
        scan.touch()
    cell, limit = ";".join(str(scan.relative_to(study)) for scan in scans), csv.field_size_limit()
    assert len(cell) > limit
    (series,) = read_manifest(manifest(study, ("name", "scans"), ("one", cell)), study / "out")
    assert series.files == [str(scan) for scan in scans]
    assert csv.field_size_limit() == limit  # of the process, which may be another program's


def test_one_mistake_is_one_line(study, capsys):
    file = manifest(study, ("name", "scans"), ("two", "absent.nii.gz"))
    assert main(["cohort", str(file), "--output", str(study / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"groupmorph: {file}: line 2: scans: expected") and "correct the line" in line


@pytest.mark.parametrize(
    "options, message",
    [
        (["--overlay", "data/none"], "--overlay: expected an overlay"),
        (["--set", "noise=-1"], "noise"),
        (["--weights", "absent.pt"], "weights: absent.pt: expected a file"),
        (["--weights", str(bundle_root() / "models" / "avsm.pt")], "weights: expected weights of a GroupSetVAE"),
        (["--overlay", "models/time_dependent"], "no weights ship for models/time_dependent"),
    ],
)
def test_options_are_checked_before_anything_starts(study, capsys, options, message):
    file = manifest(study, ("name", "scans"), ("a", "a"))
    assert main(["cohort", str(file), "--output", str(study / "out"), *options]) == 2
    assert message in capsys.readouterr().err and not (study / "out").exists()


@pytest.mark.parametrize(
    "scans, reference, message",
    [
        ("empty", "", "scans: {study}/empty: expected image files"),
        ("one", "", "scans: expected at least two scans, got one, {study}/one; add the others"),
        (
            "one;4d.nii.gz",
            "",
            "scans: {study}/one: expected an image file, got a folder; list image files, or a single folder of scans",
        ),
        ("one/t0.nii.gz", "", "scans: expected at least two scans, got one, {study}/one/t0.nii.gz; add the others"),
        ("4d.nii.gz", "3", "reference: expected one of the series' 3 timepoints, 0 to 2, got 3"),
    ],
)
def test_scans_are_counted_before_anything_starts(study, capsys, scans, reference, message):
    for folder in ("empty", "one"):
        (study / folder).mkdir()
    for name, shape in (("one/t0", (8, 8, 8)), ("4d", (8, 8, 8, 3))):
        nib.save(nib.Nifti1Image(np.ones(shape, np.float32), np.eye(4)), study / f"{name}.nii.gz")
    file = manifest(study, ("name", "scans", "reference"), ("a", scans, reference))
    assert main(["cohort", str(file), "--output", str(study / "out")]) == 2
    assert f"{file}: line 2: {message.format(study=study)}" in capsys.readouterr().err and not (study / "out").exists()


@pytest.mark.parametrize(
    "options, scans, message",
    [
        (["--dicom"], "4d.nii.gz", "--dicom: expected series of DICOM, got {study}/4d.nii.gz; omit"),
        (["--set", "write_dicom=true"], "timed", "--dicom: expected series of DICOM, got {study}/timed; omit"),
        (["--kinetics"], "4d.nii.gz", "--kinetics: expected series with acquisition times, got none with {study}/4d"),
        (
            ["--kinetics"],
            "untimed",
            "--kinetics: expected series with acquisition times, got none with {study}/untimed",
        ),
        (["--kinetics"], "timed", None),
        (["--kinetics"], "timed.nii.gz", None),
    ],
)
def test_outputs_are_checked_before_anything_starts(study, capsys, monkeypatch, options, scans, message):
    monkeypatch.setattr("groupmorph_monai.apps.cohort.registrations.run_study", lambda args, study: 0)
    image = nib.Nifti1Image(np.ones((8, 8, 8, 6), np.float32), np.eye(4))
    nib.save(image, study / "4d.nii.gz")
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = 30
    nib.save(image, study / "timed.nii.gz")
    for folder in ("timed", "untimed"):
        (study / folder).mkdir()
        for k in range(3):
            nib.save(image.slicer[..., k], study / folder / f"t{k}.nii.gz")
            if folder == "timed":
                write_json(study / folder / f"t{k}.json", {"AcquisitionTime": f"10:0{k}:00"})
    file = manifest(study, ("name", "scans"), ("a", scans))
    code = main(["cohort", str(file), "--output", str(study / "out"), *options])
    error = capsys.readouterr().err
    assert code == (2 if message else 0), error
    assert not message or f"{file}: a: {message.format(study=study)}" in error


@pytest.mark.parametrize(
    "column, value, options, message",
    [
        ("spacing_mm", "3", ["--set", "spacing_mm=2"], "--set spacing_mm: conflicts with the option"),
        ("reference", "1", ["--overlay", "modes/pair_wise"], "expected one alignment of modes/"),
        ("mask", "", ["--set", "timepoints=2"], "scans: expected 2, as the settings require, got 3"),
        ("series_description", "*dyn*", [], "--series-description: expected a folder or DICOM files"),
    ],
)
def test_options_of_a_series_are_checked_before_anything_starts(study, capsys, column, value, options, message):
    for k in range(3):
        nib.save(nib.Nifti1Image(np.ones((8, 8, 8), np.float32), np.eye(4)), study / f"s{k}.nii.gz")
    scans = "s0.nii.gz;s1.nii.gz"
    third = scans + ";s2.nii.gz"
    file = manifest(study, ("name", "scans", column), ("first", scans, ""), ("second", third, value))
    assert main(["cohort", str(file), "--output", str(study / "out"), "--shard", "1/1", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"groupmorph: {file}: second: ") and message in line and not (study / "out").exists()


@pytest.mark.parametrize(
    "header, message",
    [
        ("name\tscan", "expected the columns name and scans"),
        ("name\tscans\tscans", "expected the columns name and scans"),
        ("name\tscans", "expected one line per series"),
        ("", "expected the columns name and scans"),
    ],
)
def test_a_header_is_checked(study, capsys, header, message):
    (study / "manifest.tsv").write_text(header + "\n", encoding="utf-8")
    assert main(["cohort", str(study / "manifest.tsv"), "--output", str(study / "out")]) == 2
    assert message in capsys.readouterr().err


def test_a_manifest_that_is_a_device_is_not_read(study, capsys):
    assert main(["cohort", os.devnull, "--output", str(study / "out")]) == 2
    assert f"{os.devnull}: expected a tab-separated table, got a pipe or device" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ("--shard", "0/2"),
        ("--shard", "3/2"),
        ("--scheduler", "host"),
        ("--jobqueue", "lsf"),
        ("--workers", "0"),
        ("--workers", "99999999"),
    ],
)
def test_misuse_is_reported(study, options, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["cohort", "m.tsv", "--output", "out", *options])
    assert f"groupmorph: {options[0]}: expected" in capsys.readouterr().err


@pytest.mark.parametrize(("queue", "command"), [("slurm", "sbatch"), ("pbs", "qsub"), ("sge", "qsub")])
def test_a_queue_that_this_machine_does_not_have(study, queue, command, monkeypatch, capsys):
    """Without the queue's command, dask-jobqueue would wait forever."""
    pytest.importorskip("dask_jobqueue")
    monkeypatch.setattr("groupmorph_monai.apps.cohort.registrations.check_installed", check_installed)
    monkeypatch.setenv("PATH", str(study))
    file = manifest(study, ("name", "scans"), ("one", "a"))
    assert main(["cohort", str(file), "--output", str(study / "out"), "--jobqueue", queue]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"groupmorph: --jobqueue {queue}: expected the command {command}")
    assert not (study / "out").exists()


def job(study, *options, series=0):
    file = manifest(study, ("name", "scans"), ("a", "a"), ("b", "a/t0.nii.gz;a/t1.nii.gz"))
    args = make_parser().parse_args(["cohort", str(file), "--output", str(study / "out"), *options])
    one, words = read_manifest(file, study / "out")[series], register_options(args)
    return registration_job(one, words, CohortFolder(study / "out"), settings_hash(words))


def test_jobs_that_the_queue_rejects(study, tmp_path, monkeypatch, capfd):
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text("#!/bin/sh\necho 'sbatch: error: Batch job submission failed: Invalid account' >&2\nexit 1\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", str(sbatch.parent), prepend=os.pathsep)
    file = manifest(study, ("name", "scans"), ("one", "a"))
    assert main(["cohort", str(file), "--output", str(study / "out"), "--jobqueue", "slurm"]) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if not line.startswith(("workers", "1 series"))]
    assert line.startswith("groupmorph: --jobqueue slurm: could not submit jobs (sbatch: error: Batch job subm")
    assert "Invalid account" in line and line.endswith("or --workers")
    assert not (study / "out" / "jobs").exists()


def test_hashes_tell_what_a_result_depends_on(study):
    first = job(study)
    for options in (["--threads", "2"], ["--device", "cpu"], ["--workers", "2"], ["--quiet"]):
        assert job(study, *options)["settings"] == first["settings"], options
    for options in (
        ["--no-refine"],
        ["--set", "noise=0.1"],
        ["--weights", str(study / "mask.nii.gz")],
        ["--std", "20"],
    ):
        assert job(study, *options)["settings"] != first["settings"], options
    assert job(study)["inputs"] == first["inputs"] != job(study, series=1)["inputs"]
    os.utime(study / "a" / "t0.nii.gz", (1, 1))
    assert job(study)["inputs"] != first["inputs"]


def test_a_series_is_registered_with_the_options_of_register(study):
    words = ["--no-refine", "--overlay", "data/lung_ct", "--spacing-mm", "2", "--device", "cpu"]
    arguments = job(study, *words)["arguments"]
    expected = vars(make_parser().parse_args(["register", str(study / "a"), *words, "--output", "x"]))
    assert {**arguments, "output": "x"} == expected


def test_a_scheduler_that_does_not_answer(study, capsys, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("groupmorph_monai.apps.cohort.clusters._TIMEOUT_S", 0.1)
    file = manifest(study, ("name", "scans"), ("one", "a"))
    options = ["--output", str(study / "out"), "--scheduler", "tcp://127.0.0.1:1"]
    assert main(["cohort", str(file), *options]) == 2
    assert "--scheduler: expected a Dask scheduler" in capsys.readouterr().err and not (study / "out").exists()


def test_a_scheduler_that_needs_certificates(study, capsys):
    pytest.importorskip("distributed")
    file = manifest(study, ("name", "scans"), ("one", "a"))
    options = ["--output", str(study / "out"), "--scheduler", "tls://127.0.0.1:1"]
    assert main(["cohort", str(file), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--scheduler: expected an address that Dask can use, got tls://127.0.0.1:1" in line
    assert "distributed.comm.tls" in line and not (study / "out").exists()


@pytest.mark.parametrize("name", ["series", "failed", ".work"])
def test_a_file_in_place_of_a_folder(name, study, capsys):
    (study / "out").mkdir()
    (study / "out" / name).touch()
    file = manifest(study, ("name", "scans"), ("one", "a"))
    assert main(["cohort", str(file), "--output", str(study / "out")]) == 2
    assert f"got a file, {study / 'out' / name}" in capsys.readouterr().err and os.listdir(study / "out") == [name]


def test_a_run_leaves_neither_locks_nor_folders_of_killed_workers(study, monkeypatch):
    monkeypatch.setattr("groupmorph_monai.apps.cohort.study._process", lambda *arguments: None)
    file = manifest(study, ("name", "scans"), ("one", "a"), ("one.lock", "b"))
    cohort = CohortFolder(study / "out")
    command, names = ["cohort", str(file), "--output", str(study / "out")], ["cohort.html", "cohort.log", "cohort.tsv"]
    assert main(command) == 3
    assert sorted(os.listdir(study / "out")) == names
    for name in ("one", "one.lock"):
        cohort.unfinished(name).mkdir(parents=True)
        (cohort.unfinished(name) / "log.txt").touch()
        cohort.lock(name).touch()
    with FileLock(cohort.lock("one")):  # another command works on it
        assert main(command) == 3
    assert [path.name for path in cohort.work.iterdir() if path != cohort.lock("one")] == ["one.part"]
    assert os.listdir(cohort.unfinished("one")) == ["log.txt"]
    assert main(command) == 3
    assert sorted(os.listdir(study / "out")) == names


def test_the_page_begins_with_the_worst(tmp_path):
    cohort = CohortFolder(tmp_path)
    jobs = [{"name": name, "inputs": "i", "settings": "s"} for name in ("good", "unlike", "bad", "dead", "todo", "old")]
    reports = {
        "good": {"metrics": {"nmi_after": 0.2}, "verdict": {"verdict": "PASS", "reasons": []}},
        "unlike": {"metrics": {"nmi_after": 0.1}, "verdict": {"verdict": "PASS", "reasons": []}},
        "bad": {"metrics": {"nmi_after": 0.9}, "verdict": {"verdict": "FAIL", "reasons": ["folds", "<b>"]}},
        "old": {"metrics": {}},
    }
    for name, report in reports.items():
        cohort.series(name).mkdir(parents=True)
        write_json(cohort.series(name) / "report.json", report)
        settings = "other" if name == "old" else "s"
        status = {"name": name, "state": "finished", "inputs": "i", "settings": settings, "seconds": 2.0}
        write_json(cohort.series(name) / "status.json", status)
    cohort.write_failure({"name": "dead", "state": "failed", "inputs": "i", "settings": "s", "error": "killed"})
    assert summarise(cohort, jobs, REGISTRATIONS) == {"failed": 1, "waiting": 2, "finished": 3}
    rows = [line.split("\t") for line in (tmp_path / "cohort.tsv").read_text(encoding="utf-8").splitlines()]
    assert [row[:4] for row in rows[1:5]] == [
        ["good", "finished", "PASS", ""],
        ["unlike", "finished", "PASS", ""],
        ["bad", "finished", "FAIL", "folds; <b>"],
        ["dead", "failed", "", ""],
    ]
    page = (tmp_path / "cohort.html").read_text(encoding="utf-8")
    places = [page.index(f">{name}<") for name in ("dead", "todo", "old", "bad", "unlike", "good")]
    assert places == sorted(places)
    assert "<b>" not in page and "folds; &lt;b&gt;" in page


def test_the_line_of_a_failed_series_names_its_log(tmp_path):
    cohort, lines = CohortFolder(tmp_path), []
    job = {"name": "a", "inputs": "i", "settings": "s", "files": [], "output": "", "arguments": {}, "cwd": ""}
    status = {"name": "a", "state": "failed", "error": "no scan", "seconds": 1.0}
    _process_with_retries(cohort, [job], lambda jobs: iter([(0, status)]), lines.append)
    assert "a no scan, 1.0 s" in lines[0]
    log = cohort.failed("a") / "log.txt"
    log.parent.mkdir(parents=True)
    log.touch()
    _process_with_retries(cohort, [job], lambda jobs: iter([(0, status)]), lines.append)
    assert f"a no scan (log: {log}), 1.0 s" in lines[-1]
