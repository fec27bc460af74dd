import errno
import getpass
import io
import json
import logging
import os
import pydoc
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from monai.handlers import StatsHandler

from groupmorph_monai import __version__
from groupmorph_monai.apps import commands, run
from groupmorph_monai.apps.arguments import make_parser
from groupmorph_monai.apps.command_line import main
from groupmorph_monai.apps.faults import keep_log, print_waiting_log
from groupmorph_monai.data.reading import readers


def test_training_says_how_its_weights_are_used(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(commands, "run_bundle", lambda *arguments, **chosen: (tmp_path / "model_best.pt").touch())
    kept = ["models/voxelmorph_diff", "modes/all_to_one", "integrators/euler", "likelihoods/low_rank"]
    overlays = ("data/phantom_small", kept[0], "modes/surfaces", *kept[1:])
    options = [word for name in overlays for word in ("--overlay", name)]
    assert main(["train", "--phantoms", *options, "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    # Overlays of training alone are left out, as registration would refuse them.
    assert f"register SERIES {' '.join(f'--overlay {name}' for name in kept)} --weights" in printed


@pytest.mark.parametrize("verdict", ["PASS", "LOOK", "FAIL"])
def test_quiet_hides_no_doubt(verdict, tmp_path, monkeypatch, capsys):
    """A registration whose verdict is not PASS says so on standard error."""
    report = {"verdict": {"verdict": verdict, "reasons": [] if verdict == "PASS" else [f"{verdict}: far"]}}

    def write(*arguments, output_dir, **options):
        Path(output_dir).mkdir()
        Path(output_dir, "report.json").write_text(json.dumps(report), encoding="utf-8")

    monkeypatch.setattr(commands, "run_bundle", write)
    assert main(["register", "a.nii.gz", "b.nii.gz", "--output", str(tmp_path / "out"), "--quiet"]) == 0
    expected = "" if verdict == "PASS" else f"Verdict: {verdict}\n  {verdict}: far\n"
    assert capsys.readouterr() == ("", expected)


def test_a_training_on_what_a_killed_run_was_replacing_leaves_it(tmp_path):
    scan = tmp_path / "out" / "dicom" / "patient" / "scan.nii"
    scan.parent.mkdir(parents=True)
    scan.write_text("of which nothing is read", encoding="utf-8")
    journal = tmp_path / "out" / ".commit-abcd_123"
    journal.mkdir()
    (journal / ".stale.json").write_text(json.dumps(["dicom"]), encoding="utf-8")
    assert main(["train", "--dataset", str(scan.parents[1]), "--output", str(tmp_path / "out")]) == 2
    assert scan.is_file()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"], ["--version"], ["register", "--help"], ["settings"], ["overlays"], ["register"],
        ["benchmark", "--help"], ["benchmark", "reliability", "--help"], ["benchmark", "paper", "--help"],
    ],
)  # fmt: skip
def test_nothing_heavy_is_imported_before_the_arguments_are_understood(arguments):
    code = (
        "import sys; from groupmorph_monai.apps.command_line import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    imported = done.stderr.splitlines()[-1]
    assert "argparse" in imported
    assert not [name for name in ("torch", "monai", "itk", "numpy", "nibabel", "scipy") if f"'{name}'" in imported]


def test_the_modules_of_itk_are_loaded_at_first_use():
    code = "import sys, groupmorph_monai.apps.commands; print([m for m in sys.modules if 'ImagePython' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_user_whom_the_system_does_not_know_has_a_name_and_a_home(monkeypatch):
    """Importing MONAI needs both, which a container that runs as an arbitrary user lacks."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME", "HOME"):
        monkeypatch.setenv(name, "")  # restored at the end
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)
    assert main(["overlays"]) == 0
    assert getpass.getuser() == str(2**31 - 7) and Path.home() == Path("/")


def test_a_matplotlib_without_a_folder_for_its_cache_is_silent(capsys):
    log = keep_log()
    logging.getLogger("matplotlib").warning("created a temporary cache directory")
    print_waiting_log()
    assert "temporary cache" in log[-1] and not capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("register a b --outptu x", "--outptu: unknown option of register; did you mean --output? see"),
        ("register a b --ref 0", "--ref: unknown option of register; did you mean --reference? see"),
        ("register a --output x b", "register: expected no further argument, got 'b'; give all FILES together; see"),
        ("register --output x", "register: expected FILES, got none; see"),
        (
            "register --output x --mask m a b",
            "register: expected FILES, got none; put FILES before --mask, which took several, or separate them by --; "
            "see",
        ),
        ("register --output x --mask m", "register: expected FILES, got none; see"),
        ("register a b --output", "--output: expected a value, got none; see"),
        ("register a b --quiet=1", "--quiet: expected no value, got '1'; see"),
        ("register a --effort best --no-refine", "--no-refine: not allowed together with --effort; see"),
        ("combine d --from 1.5", "--from: expected the number of a scan, from 0, got '1.5'; see"),
        ("combine d --from 0 --to 1", "combine: expected --output, got none; see"),
        ("combine d --outptu x", "--outptu: unknown option of combine; did you mean --output? see"),
        ("train", "train: expected --dataset or --phantoms, got none; see"),
        ("benchmark paper --seedz 1", "--seedz: unknown option of benchmark paper; did you mean --seeds? see"),
        ("benchmark paper --size 8 8", "--size: expected 3 values, got fewer; see"),
        ("", "expected COMMAND, got none; see"),
        ("--quite demo", "--quite: unknown option; see"),
    ],
)
def test_a_mistake_in_the_arguments_is_reported_in_one_line(words, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(words.split())
    error = capsys.readouterr().err
    assert error.startswith(f"groupmorph: {message} groupmorph") and error.endswith(" --help\n")
    assert error.count("\n") == 1


def test_scans_after_a_mask_are_separated_by_dashes():
    args = make_parser().parse_args(["register", "--output", "x", "--mask", "m", "--", "a", "b"])
    assert (args.mask, args.files) == (["m"], ["a", "b"])


def test_an_unknown_command_is_reported_with_the_one_that_is_probably_meant(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["registers", "a", "--output", "x"])
    error = capsys.readouterr().err
    assert error.startswith("groupmorph: COMMAND: expected one of register, cohort,") and error.count("\n") == 1
    assert "got 'registers'; did you mean register? see groupmorph --help" in error


@pytest.mark.parametrize("words", [["register", "--outptu", "x", "--help"], ["--help"]])
def test_help_is_given_despite_mistakes(words, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(words)
    assert capsys.readouterr().out.startswith("usage: groupmorph")


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"groupmorph {__version__}\n"


def test_openmp_is_passive_before_torch_is_imported():
    code = (
        "import os, sys; from groupmorph_monai.apps.command_line import main\n"
        "print('OMP_WAIT_POLICY' in os.environ); main(['settings', '--quiet'])\n"
        "print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    assert done.stdout.split() == ["False", "PASSIVE", "False"], done.stderr


def test_a_fault_of_the_program_is_three_lines_and_a_log(monkeypatch, tmp_path, capsys):
    def broken(args):
        run.logger.info("half way")
        try:
            raise ZeroDivisionError("one over nothing")
        except ZeroDivisionError as error:
            StatsHandler(name="train").exception_raised(None, error)

    monkeypatch.setitem(commands.COMMANDS, "demo", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["demo", "--output", "$x"]) == 1
    output, errors = capsys.readouterr()
    message, *lines = errors.splitlines()
    assert "half way" in message
    assert output == "" and len(lines) == 3 and all(line.startswith("groupmorph: ") for line in lines)
    assert "ZeroDivisionError: one over nothing" in lines[0] and "report" in lines[2]
    log = Path(lines[1].split(": ")[-1]).read_text(encoding="utf-8")
    assert log.count("Traceback") == 1 and "half way" in log and "torch" in log
    assert json.dumps(["demo", "--output", "$x"]).replace('"', "'") in log


def test_a_fault_of_the_program_without_a_place_for_the_log(monkeypatch, tmp_path, capsys):
    def broken(args):
        raise ZeroDivisionError("one over nothing")

    monkeypatch.setitem(commands.COMMANDS, "demo", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    assert main(["demo"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and "ZeroDivisionError" in lines[0] and "not written (No such file or directory)" in lines[1]


def test_an_error_in_a_thread_is_logged(monkeypatch, capsys):
    def with_thread(args):
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()

    monkeypatch.setitem(commands.COMMANDS, "demo", with_thread)
    assert main(["demo"]) == 0 and capsys.readouterr().err == ""
    assert main(["demo", "--verbose"]) == 0 and "ZeroDivisionError" in capsys.readouterr().err


def test_warnings_of_libraries_are_no_errors(tmp_path):
    command = [sys.executable, "-W", "error", "-m", "groupmorph_monai.apps"]
    command += ["register", "a.nii", "b.nii", "--output", "out"]
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 2 and "a.nii: expected a file or folder" in done.stderr, done.stderr


@pytest.mark.parametrize("importing", [False, True])
def test_interrupted_by_the_user(importing, monkeypatch, tmp_path, capsys):
    def interrupted(args):
        if importing:
            pydoc.locate("interrupted_module.Class")  # as MONAI finds the classes of a config
        raise KeyboardInterrupt

    (tmp_path / "interrupted_module.py").write_text("raise KeyboardInterrupt", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(commands.COMMANDS, "demo", interrupted)
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "groupmorph: stopped; results are the earlier or the new ones, never a mixture\n"


@pytest.mark.parametrize("amount, shown", [("--quiet", 1), (None, 2), ("--verbose", 4)])
def test_quiet_and_verbose_determine_the_messages(amount, shown, monkeypatch, capsys):
    def talk(args):
        run.logger.warning("1 mind this")
        run.logger.info("2 a stage is over")
        run.logger.debug("3 the settings")
        logging.getLogger("monai.engines").info("4 words of a library")

    monkeypatch.setitem(commands.COMMANDS, "demo", talk)
    assert main(["demo", *([amount] if amount else [])]) == 0
    numbers = [line.split(": ")[1][0] for line in capsys.readouterr().err.splitlines()]
    assert numbers == ["1", "2", "3", "4"][:shown]


def test_the_backend_of_figures_is_not_inherited(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "module://of_another_environment")
    monkeypatch.setitem(commands.COMMANDS, "demo", lambda args: None)
    assert main(["demo"]) == 0 and os.environ["MPLBACKEND"] == "agg"


@pytest.mark.parametrize("works", [False, True])
def test_messages_about_the_input_wait_for_the_work(works, monkeypatch, capsys):
    printed = []

    def talk(args):
        readers.logger.info("1 the scans were read")
        printed.append(capsys.readouterr().err)
        if works:
            run.logger.info("2 the work starts")

    monkeypatch.setitem(commands.COMMANDS, "demo", talk)
    assert main(["demo"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert printed == [""] and [line.split(": ")[1][0] for line in lines] == ["1", "2"][: 1 + works]


def test_messages_about_much_input_do_not_wait_long(monkeypatch, capsys):
    def read(args):
        record = logging.makeLogRecord({"name": readers.logger.name, "levelno": logging.INFO, "msg": "1 reading"})
        record.created -= 11
        readers.logger.handle(record)
        readers.logger.info("2 a scan was read")
        assert [line.split(": ")[1][0] for line in capsys.readouterr().err.splitlines()] == ["1", "2"]

    monkeypatch.setitem(commands.COMMANDS, "demo", read)
    assert main(["demo"]) == 0 and capsys.readouterr().err == ""


@pytest.mark.parametrize(("closed", "lines"), [("stdout", 0), ("stderr", 2)])
def test_closed_output(closed, lines, monkeypatch, capsys):
    monkeypatch.setitem(commands.COMMANDS, "demo", lambda args: print("one\ntwo"))
    monkeypatch.setattr(sys, closed, None)
    assert main(["demo"]) == 0
    assert capsys.readouterr().out.count("\n") == lines


def test_removed_current_folder(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["register", "a.nii", "b.nii", "--output", "out"]) == 2
    assert capsys.readouterr().err.startswith("groupmorph: current folder: it was removed; change to another")


def test_output_that_nobody_reads(tmp_path):
    command = f"{sys.executable} -m groupmorph_monai.apps settings"
    done = subprocess.run(["bash", "-c", f"{command} | head -1"], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("timepoints ") and done.stderr == ""
    done = subprocess.run(["bash", "-c", f"{command} > /dev/full"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "standard output" in done.stderr
    done = subprocess.run(["bash", "-c", f"{command} 1< /dev/null"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "standard output: could not write messages (Bad file desc" in done.stderr


@pytest.mark.parametrize(
    ("code", "returned", "told"), [(errno.EPIPE, 3, ""), (errno.ENOSPC, 3, "standard output: could")]
)
def test_a_command_goes_on_without_its_output(code, returned, told, monkeypatch, capsys):
    """Example: a long study whose terminal, pager or log file disappears."""

    class Lost(io.StringIO):
        def write(self, text):
            raise OSError(code, os.strerror(code))

    finished = []

    def study(args):
        print("1 of 2", flush=True)
        logging.StreamHandler(sys.stdout).handle(logging.makeLogRecord({"msg": "a message of MONAI"}))
        print("2 of 2", flush=True)
        finished.append(2)
        return 3

    monkeypatch.setitem(commands.COMMANDS, "demo", study)
    monkeypatch.setattr(sys, "stdout", Lost())
    assert main(["demo"]) == returned and finished == [2]
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == bool(told)


def test_an_error_that_cannot_be_written_has_its_exit_code(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with open("/dev/full", "w", encoding="utf-8", buffering=1) as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert main(["register", "a.nii", "b.nii", "--output", "out"]) == 2
