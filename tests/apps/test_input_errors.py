"""Series that cannot be registered and errors of the system are reported in one line with the file and the cure."""

import errno
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from bundle_runs import run_config
from image_files import write_nifti

from groupmorph_monai.apps.input_errors import chain_of_causes, find_input_error
from groupmorph_monai.errors import InputError


def truncated(file, scan):
    file.write_bytes(Path(scan).read_bytes()[:2000])


def no_image(file, scan):
    file.write_text("not an image\n", encoding="utf-8")


def apart(file, scan):
    first = nibabel.load(scan)
    away = first.affine.copy()
    away[:3, 3] = 1000
    write_nifti(file, first.get_fdata(dtype=np.float32), away)


def not_a_number(file, scan):
    data = nibabel.load(scan).get_fdata(dtype=np.float32)
    data[3, 3, 3] = np.nan
    write_nifti(file, data, np.eye(4))


def constant(file, scan):
    write_nifti(file, np.ones((28, 24, 20), np.float32), np.eye(4))


BAD_SCANS = {
    "absent.nii.gz": lambda file, scan: None,
    "half.nii.gz": truncated,
    "notes.txt": no_image,
    "far.nii.gz": apart,
    "nan.nii.gz": not_a_number,
    "flat.nii.gz": constant,
}


@pytest.fixture
def earlier_result(tmp_path):
    file = tmp_path / "out" / "warped.nii.gz"
    file.parent.mkdir()
    file.write_text("an earlier result", encoding="utf-8")
    return file


@pytest.mark.parametrize("name", BAD_SCANS)
def test_bad_scan(name, series, tmp_path, earlier_result, refused):
    BAD_SCANS[name](tmp_path / name, series[0])
    refused(["register", *series[:5], name, "--output", "out"], name)
    assert earlier_result.read_text(encoding="utf-8") == "an earlier result"


def test_one_timepoint(series, earlier_result, refused):
    refused(["register", series[0], "--output", "out"], "one timepoint")
    assert earlier_result.read_text(encoding="utf-8") == "an earlier result"


def test_number_of_timepoints_of_the_papers_network(series, tmp_path):
    with pytest.raises(RuntimeError) as raised:
        run_config("inference", "inference", "models/groupmorph", series=series[:4], output_dir=str(tmp_path / "out"))
    assert "expected 6 timepoints" in str(find_input_error(raised.value))


@pytest.mark.parametrize(
    "code", [errno.EACCES, errno.EEXIST, errno.ENAMETOOLONG, errno.ENOSPC, errno.EROFS, errno.ELOOP]
)
def test_path_that_the_system_refuses(code):
    error = OSError(code, os.strerror(code), "scans/t0.nii.gz")
    expected = f"scans/t0.nii.gz: expected a path that can be used, got {error.strerror}"
    assert str(find_input_error(error)).startswith(expected)
    assert find_input_error(OSError(errno.EINVAL, "invalid argument", "scans/t0.nii.gz")) is None


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_disk_that_does_not_answer(code):
    for names, place in ((("t0.nii",), "t0.nii"), ((b"t0.nii",), "t0.nii"), ((), "disk")):
        message = str(find_input_error(OSError(code, os.strerror(code), *names)))
        assert message.startswith(f"{place}: could not read or write ({os.strerror(code)}); check the disk")


def test_a_file_whose_disk_fails_is_named(series, refused):
    refused(["register", series[0], "/proc/self/mem", "--output", "out"], "/proc/self/mem: could not read")


def test_limits_of_the_system():
    unusable = InputError("out: expected a folder, got Too many open files; choose another")
    unusable.__cause__ = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    assert "raise 'ulimit -n'" in str(find_input_error(unusable))
    assert "raise 'ulimit -v'" in str(
        find_input_error(ImportError("libx.so: failed to map segment from shared object"))
    )
    assert "free some space" in str(find_input_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    loading = "Error(s) in loading state_dict for A: While copying the parameter a, an exception occurred: "
    assert "raise the limit" in str(find_input_error(RuntimeError(f"{loading}can't allocate memory")))
    assert "raise 'ulimit -u' or" in str(find_input_error(RuntimeError("can't start new thread")))
    assert str(find_input_error(RuntimeError(f"{loading}Failed to initialize cpuinfo!"))).startswith("/proc: ")
    no_folder = FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")
    assert "set TMPDIR" in str(find_input_error(no_folder))


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 11.99 GiB.",
        "CUDA error: out of memory",
        "HIP out of memory. Tried to allocate 2.00 GiB",
        "MPS backend out of memory (MPS allocated: 17.77 GB)",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuFFT error: CUFFT_ALLOC_FAILED",
    ],
)
def test_a_graphics_card_without_memory(text):
    message = str(find_input_error(torch.OutOfMemoryError(text)))
    assert message.startswith("GPU memory: ") and "ulimit" not in message
    assert all(cure in message for cure in ("--device cpu", "--spacing-mm", "--set window_size_voxels="))


@pytest.mark.parametrize(
    ("name", "shown"),
    [("a\nb.nii", "a b.nii"), ("\x1b[2Ja.nii", r"\x1b[2Ja.nii"), ("é\u202eb.nii", r"é\u202eb.nii")],
)
def test_a_name_does_not_change_the_terminal(name, shown):
    assert str(InputError(f"{name}: expected a file")) == f"{shown}: expected a file"


def test_a_circle_of_causes():
    broken, again = OSError(errno.EINVAL, os.strerror(errno.EINVAL)), ValueError("again")
    broken.__cause__, again.__cause__ = again, broken
    assert chain_of_causes(broken) == [broken, again] and find_input_error(broken) is None
