"""Recognise files before they are read: regular ones, text, and DICOM without pydicom, an optional dependency."""

import contextlib
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib

from ...errors import InputError
from .names import NIFTI_ENDINGS

_SYSTEM = (".", "#", "@", "$", "lost+found", "System Volume Information")  # prefixes of the names of system folders
# Old exports lack the preamble; their files begin with an element of group 2 or 8.
_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")
_PAIR_ENDINGS = (".hdr", ".hdr.gz", ".img", ".img.gz")
_LFS = b"version https://git-lfs"
GZIP_START = b"\x1f\x8b"
_ARCHIVES = (b"PK\x03\x04", b"7z\xbc\xaf", b"Rar!", GZIP_START)
_HEAD = 352  # bytes of the header of a NIfTI-1 file
_NIFTI = re.compile(rb".{344}n\+1\0|.{4}n\+2\0", re.DOTALL)
_NAMED_ALIKE = {  # formats whose files are often given the ending of another: their first bytes
    ".nii": _NIFTI,
    ".nrrd": re.compile(rb"NRRD\d"),
    ".mha": re.compile(rb"(ObjectType|NDims)\s*="),
}


def check_regular_file(path: str | Path) -> None:
    """Check that a path leads to a regular file: reading a named pipe may never end.

    Raises:
        InputError: If it is missing, a broken link, a folder, a pipe or a device, or cannot be read.
    """
    if os.path.isfile(path):
        pair = nib.Nifti1Pair.filespec_to_file_map(path) if str(path).lower().endswith(_PAIR_ENDINGS) else {}
        for part in (str(holder.filename) for holder in pair.values()):
            if not os.path.lexists(part):
                raise InputError(
                    f"{path}: expected an image in two files, got no {os.path.basename(part)} beside it; copy both, "
                    "with names alike"
                )
            if not os.path.isfile(part):
                check_regular_file(part)
        if not os.access(path, os.R_OK):
            raise InputError(f"{path}: expected a file that may be read, got no permission; change its permissions")
        if is_lfs_pointer(path):
            raise InputError(f"{path}: expected an image, got a pointer of Git LFS; fetch the file by 'git lfs pull'")
        return
    if os.path.isdir(path):
        raise InputError(f"{path}: expected an image file, got a folder; list image files, or a single folder of scans")
    if os.path.exists(path):
        raise InputError(f"{path}: expected an image file, got a pipe or device; write the image to a file first")
    if os.path.islink(path):
        raise InputError(
            f"{path}: expected a file, got a link to a missing one, {os.readlink(path)!r}; fetch that file, or remove "
            "the link"
        )
    raise InputError(f"{path}: expected a file or folder, got a path that does not exist; {_cure(str(path))}")


def _cure(path: str) -> str:
    """Return the probable cure for a path that does not exist."""
    if re.search(r"\w:/\w", path):  # https://..., of which a path keeps one slash
        return "download the file first"
    if "," in path or ";" in path:
        return "separate scans by spaces"
    if re.search(r"[*?$]|(^|/)~", path):
        return "check the path, and omit quotes, so that the shell expands *, ~ and $"
    return "check the path, and quote paths with spaces"


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and its sub-folders, sorted by name in each folder.

    Links to folders are followed, after all other folders, as scans may be stored elsewhere. Each folder is searched
    once; parents of ``folder`` are not. Folders of the system without permission, such as lost+found, are left out.

    Raises:
        InputError: If a sub-folder cannot be read, as it may hold scans of the series.
    """
    waiting, searched = [folder], set(folder.resolve().parents)
    links: list[Path] = []
    while waiting or links:
        current = waiting.pop() if waiting else links.pop(0)
        if (real := current.resolve()) in searched:
            continue
        searched.add(real)
        if not os.access(current, os.R_OK | os.X_OK):
            if current.name.startswith(_SYSTEM):
                continue
            raise InputError(
                f"{current}: expected a folder that may be read, got no permission; change its permissions"
            )
        folders: list[os.DirEntry[str]] = []
        files: list[os.DirEntry[str]] = []
        with os.scandir(current) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                (folders if entry.is_dir() else files).append(entry)
        links += [Path(entry) for entry in folders if entry.is_symlink()]
        waiting += [Path(entry) for entry in reversed(folders) if not entry.is_symlink()]
        yield from map(Path, files)


def read_text(path: str | Path) -> str:
    """Read a text file in UTF-8, with or without byte order mark.

    Raises:
        OSError: If the file cannot be read, or is a pipe or device, which may never end.
        ValueError: If the encoding is not UTF-8.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(f"a {'folder' if os.path.isdir(path) else 'pipe or device'}")
    return Path(path).read_text(encoding="utf-8-sig")


def read_json(path: str | Path) -> Any:
    """Read a JSON file. Repeated keys, of which Python would keep only the last, are refused.

    Raises:
        OSError: As for `read_text`.
        ValueError: If it is not valid JSON in UTF-8, or repeats a key.
        RecursionError: If it is nested too deeply.
    """
    return json.loads(read_text(path), object_pairs_hook=_unique_keys)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        repeated = next(key for key, _ in pairs if [name for name, _ in pairs].count(key) > 1)
        raise ValueError(f"{repeated!r} occurs twice")
    return content


def check_itk_path(path: str | Path) -> None:
    """Check that all names in a path are valid UTF-8, as ITK cannot open others.

    Raises:
        InputError: If one is not.
    """
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        raise InputError(f"{path}: expected names in UTF-8, as ITK needs, got other bytes; rename them") from None


def other_content(path: str | Path) -> str:
    """Describe a file that does not have the format of its name, and the cure, in the form "CONTENT; CURE"."""
    name, head = str(path).lower(), _start(path, _HEAD)
    if not head:
        return "an empty file; copy it again"
    packed = ".gz" if head.startswith(GZIP_START) else ""
    if packed:
        with contextlib.suppress(OSError, EOFError, zlib.error), gzip.open(path) as file:
            head = file.read(_HEAD)
    ending = next((ending for ending, start in _NAMED_ALIKE.items() if start.match(head)), None)
    if ending and not name.endswith(ending + packed) and (ending == ".nii" or not packed):
        return f"an image whose name needs the ending {ending}{packed}; rename it"
    if (packed or head.startswith(_ARCHIVES)) and not name.endswith((".mgz", *NIFTI_ENDINGS)):
        return "another kind of file; unpack the archive and use what is in it, or convert it to NIfTI"
    if is_dicom(Path(path)):
        return (
            "another kind of file; use DICOM files without files of other kinds, or convert them to NIfTI with dcm2niix"
        )
    if name.endswith((".tsv", ".csv", ".txt")):
        return (
            "another kind of file; list image files; points need the ending .csv, and a table of series the command "
            "'groupmorph cohort'"
        )
    return "another kind of file, or a damaged one; copy it again, convert it to NIfTI, or remove it"


def is_lfs_pointer(path: str | Path) -> bool:
    """Check whether this is what Git LFS leaves in place of a file until it is fetched."""
    return _start(path, len(_LFS)) == _LFS


def _start(path: str | Path, number: int) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(number)
    except OSError as error:  # while reading, Python does not name the file
        raise OSError(error.errno, error.strerror, str(path)) from error


def is_dicom(path: Path) -> bool:
    """Check whether this is a DICOM file, regardless of its name."""
    if not path.is_file() or path.name.startswith("."):
        return False
    try:
        head = _start(path, 132)
    except OSError:  # not readable; reported later if the file was listed explicitly
        return False
    if head[128:] == b"DICM":
        return True
    element, length_or_type = head[:4], head[4:6]
    return element[:2] in _FIRST_GROUPS and (length_or_type.isalpha() or head[6:8] == b"\x00\x00") and len(head) == 132
