"""A result is written completely or not at all, whenever a run is killed or fails."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from faults import KILLED, at_every_call, in_a_child, kill

from groupmorph_monai.data.writing import output_folder, replacement
from groupmorph_monai.data.writing.output_folder import (
    atomic_file,
    atomic_folder,
    claim,
    release,
    release_all,
    write_tensors,
)
from groupmorph_monai.errors import InputError

OLD = {"warped.nii.gz": "old", "ddf_00.nii.gz": "old", "ddf_01.nii.gz": "old", "report.json": "old"}
NEW = {"warped.nii.gz": "new", "ddf_00.nii.gz": "new", "report.json": "new"}
STALE = ["ddf_01.nii.gz"]


def write(folder, result, stale=()):
    with atomic_folder(folder, stale) as staging:
        for name, text in result.items():
            (staging / name).write_text(text, encoding="utf-8")


def result_in(folder):
    """Read the visible files of a folder, except those of the user."""
    files = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return {path.name: path.read_text(encoding="utf-8") for path in files if path.name not in ("notes.txt", "link")}


def hidden(folder):
    return sorted(p.name for place in (folder, folder.parent) for p in place.iterdir() if p.name.startswith("."))


@pytest.fixture(params=["exchanged", "moved in"])
def folder(request, tmp_path, monkeypatch):
    """Make a folder with an earlier result and a file of the user, which is replaced in either of two ways."""
    folder = tmp_path / "out"
    write(folder, OLD)
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    if request.param == "moved in":
        (folder / "series").mkdir()
        (folder / "series" / "scan.txt").write_text("mine", encoding="utf-8")
    return folder


def interrupted(first):
    if first:
        raise KeyboardInterrupt


def check_next_run(folder):
    """Check that the next run after a killed one writes its result and removes all leftovers."""
    write(folder, NEW, STALE)
    assert result_in(folder) == NEW and (folder / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert hidden(folder) == []
    if (folder / "series").exists():
        assert (folder / "series" / "scan.txt").read_text(encoding="utf-8") == "mine"


def complete(folder):
    """Check that a folder contains one complete result; while files are moved, only a complete one has a report."""
    content = result_in(folder)
    return content in (OLD, NEW) or ((folder / "series").exists() and "report.json" not in content)


def full(_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(("fault", "failed"), [(kill, KILLED), pytest.param(full, 1, marks=pytest.mark.slow)])
def test_a_kill_or_a_failing_disk_at_any_change_leaves_one_complete_result(folder, fault, failed):
    ends = []
    for end in at_every_call(lambda: write(folder, NEW, STALE), fault):
        ends.append(end)
        assert complete(folder), f"call {len(ends)}: {result_in(folder)}"
        assert (folder / "notes.txt").read_text(encoding="utf-8") == "mine"
        if len(ends) % 4 == 0:  # only sometimes, so that leftovers of several runs accumulate
            check_next_run(folder)
            write(folder, OLD)
    assert len(ends) > 20 and {*ends} == {0, failed}
    check_next_run(folder)


@pytest.mark.slow
def test_an_interruption_at_any_change_leaves_one_complete_result_and_no_leftovers(folder):
    ends = []
    for end in at_every_call(lambda: until_exit(lambda: write(folder, NEW, STALE)), interrupted):
        ends.append(end)
        assert result_in(folder) in (OLD, NEW) and hidden(folder) == [], f"call {len(ends)}: {result_in(folder)}"
        write(folder, OLD)
    assert len(ends) > 20 and {*ends} == {0, 130}


def test_an_interruption_at_any_change_leaves_one_complete_file_and_no_leftovers(tmp_path):
    def replace():
        claim(tmp_path)
        with atomic_file(tmp_path / "cache" / "series.pt") as path:
            path.write_text("new", encoding="utf-8")

    (tmp_path / "cache").mkdir()
    ends = []
    for end in at_every_call(lambda: until_exit(replace), interrupted):
        ends.append(end)
        assert [path for path in tmp_path.rglob("*") if path.is_file()] in ([], [tmp_path / "cache" / "series.pt"])
        assert [*tmp_path.rglob(".*")] == [], f"call {len(ends)}"
    assert len(ends) > 10 and {*ends} == {0, 130}


def until_exit(act):
    """Run ``act`` as a command does: folders are released after it, and again at exit."""
    try:
        act()
        release_all()
    finally:
        release_all()


def test_a_full_disk_is_reported_in_one_line(folder, monkeypatch):
    for name in ("fsync", "replace"):
        with (
            monkeypatch.context() as patch,
            pytest.raises(InputError, match=r"No space left on device\); free some space"),
        ):
            patch.setattr(os, name, lambda *_: full(True))
            write(folder, {"a.txt": "x"})
        assert result_in(folder) == OLD and hidden(folder) == []


def test_the_result_replaces_the_whole_earlier_one_and_keeps_what_is_not_its_own(folder):
    os.chmod(folder, 0o2750)
    (folder / "link").symlink_to("notes.txt")
    check_next_run(folder)
    assert (folder / "link").is_symlink() and folder.stat().st_mode & 0o7777 == 0o2750


def test_a_folder_with_no_sub_folders_is_exchanged(tmp_path):
    """Otherwise the tests above would not cover the exchange."""
    write(tmp_path / "out", OLD)
    before = (tmp_path / "out").stat().st_ino
    write(tmp_path / "out", NEW, STALE)
    assert (tmp_path / "out").stat().st_ino != before


def test_a_folder_with_the_longest_name(tmp_path):
    folder = tmp_path / ("x" * 255)
    write(folder, OLD)
    leftover = replacement.make_staging(folder.resolve())
    write(folder, NEW, STALE)
    assert result_in(folder) == NEW and not leftover.exists()


def test_the_current_folder_is_not_replaced(tmp_path, monkeypatch):
    write(tmp_path / "out", OLD)
    monkeypatch.chdir(tmp_path / "out")
    write(".", NEW, STALE)
    assert result_in(Path.cwd()) == NEW and hidden(Path.cwd()) == []


def test_where_folders_cannot_be_exchanged_files_are_moved_in(folder, monkeypatch):
    def fail(*_, **options):
        raise OSError(errno.EINVAL, "Invalid argument")

    for name in ("link", "_exchange"):
        with monkeypatch.context() as patch:
            patch.setattr(*((os, name) if name == "link" else (replacement, name)), fail)
            check_next_run(folder)
        write(folder, OLD)


def test_a_folder_where_a_file_is_to_be_is_not_replaced(tmp_path):
    (tmp_path / "warped.nii.gz").mkdir()
    (tmp_path / "warped.nii.gz" / "mine").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="warped.nii.gz: expected a file or none, got a folder"):
        write(tmp_path, NEW)
    assert (tmp_path / "warped.nii.gz" / "mine").read_text(encoding="utf-8") == "mine" and os.listdir(tmp_path) == [
        "warped.nii.gz"
    ]


@pytest.mark.parametrize("theirs", ["warped.nii.gz", "report.json", "ddf_01.nii.gz"])
def test_a_file_of_another_user_in_a_sticky_folder_is_not_replaced(theirs, tmp_path, monkeypatch):
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    (folder / theirs).write_text("theirs", encoding="utf-8")
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(InputError, match=f"{theirs}: expected a file of your own, or none, got one of another user"):
        write(folder, NEW, STALE)
    assert os.listdir(folder) == [theirs] and (folder / theirs).read_text(encoding="utf-8") == "theirs"
    assert os.listdir(tmp_path) == ["shared"]
    monkeypatch.setattr(os, "geteuid", lambda: owner)
    write(folder, NEW, STALE)
    assert result_in(folder) == NEW


def test_several_writers_make_one_result(tmp_path):
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "out") as staging:
        write(staging, {"a.txt": "a"})
        assert os.listdir(staging) == ["a.txt"] and result_in(tmp_path / "out") == {}
        raise RuntimeError
    assert not (tmp_path / "out").exists()  # it was created in vain


def test_one_run_at_a_time(tmp_path):
    def second():
        output_folder._claims.clear()  # as in a separate process
        claim(tmp_path)

    claim(tmp_path)
    partial, own = tmp_path / ".partial-abcd_123", tmp_path / ".partial-results"
    partial.mkdir()
    own.mkdir()
    assert in_a_child(second) == 1
    assert partial.exists()
    with pytest.raises(InputError, match="that no other run writes to"):
        kept = dict(output_folder._claims)
        try:
            second()
        finally:
            output_folder._claims.update(kept)
    release(tmp_path)
    assert in_a_child(second) == 0
    assert not partial.exists() and own.exists()


@pytest.mark.slow
def test_a_folder_created_in_vain_is_removed_with_its_empty_sub_folders(tmp_path):
    for name, file, stays in (("none", None, False), ("log", "tensorboard/events", True)):
        claim(tmp_path / name)
        (tmp_path / name / "tensorboard").mkdir()
        if file:
            (tmp_path / name / file).touch()
        release(tmp_path / name)
        assert (tmp_path / name).exists() == stays


def test_a_lock_is_its_holders_and_dies_with_it(tmp_path):
    folder = tmp_path / "out"
    code = (
        "import sys, time; from groupmorph_monai.data.writing.output_folder import claim;"
        "claim(sys.argv[1]); print('claimed', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert "claimed" in holder.stdout.readline()
        with pytest.raises(InputError, match="that no other run writes to"):
            write(folder, NEW)
    finally:
        holder.kill()
        holder.wait()
    write(folder, NEW)
    assert result_in(folder) == NEW and hidden(folder) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_folder_is_reported_in_one_line(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match=r"written to, got .* \(Permission denied\)"):
        write(tmp_path, NEW)


@pytest.mark.parametrize("wanted", [False, True])
def test_folders_above_go_with_the_one_that_was_made_for_nothing(wanted, tmp_path):
    folder = tmp_path / "study" / "patient" / "aligned"
    claim(folder)
    if wanted:
        (tmp_path / "study" / "notes.txt").write_text("mine", encoding="utf-8")
    release(folder)
    assert [path.name for path in tmp_path.rglob("*")] == (["study", "notes.txt"] if wanted else [])


def test_a_path_that_is_too_long_leaves_no_folders(tmp_path):
    with pytest.raises(InputError, match="File name too long"):
        claim(tmp_path.joinpath(*["x" * 200] * 25))
    with pytest.raises(InputError, match="File name too long"):
        claim(tmp_path / "study" / ("x" * 300))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_created_is_reported_in_one_line(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match=r"^output folder: expected a folder, got the broken link .*link; remove it"):
        write(tmp_path / "link", NEW)
    with pytest.raises(InputError, match=r"^output folder: expected .*, got .*file/new \(Not a directory\); choose"):
        write(tmp_path / "file" / "new", NEW)


def test_one_file_is_complete_or_unchanged(tmp_path):
    file = tmp_path / "checkpoint.pt"
    file.write_text("old", encoding="utf-8")

    def replace():
        with atomic_file(file) as path:
            path.write_text("new", encoding="utf-8")

    ends = []
    for end in at_every_call(replace, kill):
        ends.append(end)
        assert file.read_text(encoding="utf-8") in ("old", "new")
    assert len(ends) > 4 and {*ends} == {0, KILLED} and file.read_text(encoding="utf-8") == "new"
    claim(tmp_path)
    release(tmp_path)
    assert os.listdir(tmp_path) == ["checkpoint.pt"]


def test_a_journal_of_a_dead_run_is_completed(tmp_path):
    folder = tmp_path / "out"
    write(folder, OLD)
    journal = folder / ".commit-abcd_123"
    journal.mkdir()
    for name, text in {**NEW, ".stale.json": json.dumps(STALE)}.items():
        (journal / name).write_text(text, encoding="utf-8")
    claim(folder)
    release(folder)
    assert result_in(folder) == NEW and hidden(folder) == []


@pytest.mark.parametrize("stale", ['["../precious"]', '[".."]', '["a/b"]', "[5]", "5", "broken"])
def test_a_damaged_journal_removes_nothing(tmp_path, stale):
    folder, precious = tmp_path / "out", tmp_path / "precious"
    write(folder, OLD)
    precious.write_text("kept", encoding="utf-8")
    journal = folder / ".commit-abcd_123"
    journal.mkdir()
    (journal / ".stale.json").write_text(stale, encoding="utf-8")
    with pytest.raises(InputError, match=r"stale\.json: expected a list of files"):
        claim(folder)
    assert precious.read_text(encoding="utf-8") == "kept" and hidden(folder) == [".commit-abcd_123"]
    shutil.rmtree(journal)
    claim(folder)
    release(folder)
    assert result_in(folder) == OLD


def test_a_full_disk_is_reported_in_one_line_for_files_of_pytorch(tmp_path):
    claim(tmp_path)
    (tmp_path / "cache").mkdir()
    with pytest.raises(InputError, match="No space left on device"), atomic_file(tmp_path / "weights.pt") as path:
        path.symlink_to("/dev/full")
        write_tensors({"weight": torch.ones(1000, 100)}, path)
    release_all()
    assert os.listdir(tmp_path) == ["cache"]


@pytest.mark.parametrize("folders", [(), ("old",)])
def test_a_run_that_has_used_up_its_file_handles_leaves_nothing(tmp_path, folders):
    def open_too_many(folder):
        with atomic_folder(folder) as staging:
            files = []
            while True:
                files.append(open(staging / str(len(files)), "w", encoding="utf-8"))

    def fail():
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        with pytest.raises(InputError, match="Too many open files"):
            open_too_many(tmp_path / "out")
        release_all()

    for name in folders:
        (tmp_path / "out" / name).mkdir(parents=True)
    assert in_a_child(fail) == 0
    assert [path.name for path in tmp_path.rglob("*")] == (["out", *folders] if folders else [])
