"""Types of command-line options. Each function parses one argument and rejects invalid values."""

import argparse
import os
import re
import reprlib
from collections.abc import Callable

from .kinds import Kind, Number, Whole

_UNEXPANDED = re.compile("~[^/]*/|~$")
_FILE = re.compile(r".*\.(nii|nii\.gz|mha|mhd|nrrd|nhdr|h5|csv|tsv|json|html)", re.IGNORECASE | re.DOTALL)


def device(text: str) -> str:
    if not re.fullmatch(r"cpu|mps|cuda(:\d{1,3})?", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"expected cpu, cuda or cuda:N, got {reprlib.repr(text)}")
    return text


def path(text: str) -> str:
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError(f"expected a path, got {text!r}; is a shell variable empty?")
    if text.endswith("\r"):
        raise argparse.ArgumentTypeError(
            f"expected a path, got {text!r} with the end of a Windows line; convert the script to Unix lines"
        )
    return text


def folder(text: str) -> str:
    """Parse the path of a results folder, and refuse a file name, which would become the name of a folder."""
    if os.path.isdir(path(text)):
        return text
    if _FILE.fullmatch(text):
        raise argparse.ArgumentTypeError(f"expected a folder for several files, got {text!r}; choose another name")
    return _local(text)


def _local(text: str) -> str:
    """Refuse a URL and a home folder that the shell did not expand, which would become names of folders."""
    if _UNEXPANDED.match(text):
        raise argparse.ArgumentTypeError(
            f"expected a path, got {text!r}; omit quotes and the =, so that the shell expands ~, or write it in full"
        )
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"expected a path on this machine, got {text!r}; mount the folder, or copy the results"
        )
    return text


def transform_file(text: str) -> str:
    """Parse the path of a displacement field or an ITK transform."""
    if not re.fullmatch(r".*[^/]\.(nii|nii\.gz|h5)", path(text), re.DOTALL):
        raise argparse.ArgumentTypeError(f"expected a name that ends in .nii.gz, .nii or .h5, got {text!r}; rename it")
    return text if os.path.isdir(os.path.dirname(text)) else _local(text)


def pattern(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError(f"expected a pattern, got {text!r}; is a shell variable empty?")
    return text


def reference(text: str) -> str:
    if text != "mean" and not re.fullmatch(r"\d{1,6}", text, re.ASCII):
        raise argparse.ArgumentTypeError(
            f"expected 'mean' or the number of a timepoint from 0, got {reprlib.repr(text)}"
        )
    return text


def scan(text: str) -> int:
    """Parse the number of a scan. Its range depends on the series and is checked there."""
    if not re.fullmatch(r"-?\d{1,6}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"expected the number of a scan, from 0, got {reprlib.repr(text)}")
    return int(text)


def number(kind: Kind) -> Callable[[str], float]:
    """Make a parser of numbers that accepts the same values as a setting of this kind."""

    def read(text: str) -> float:
        try:
            value = int(text) if isinstance(kind, Whole) else float(text)
        except ValueError:
            value = None
        if value is None or not text.isascii() or "_" in text or not kind.accepts(value):
            raise argparse.ArgumentTypeError(f"expected {kind}, got {reprlib.repr(text)}")
        return value

    return read


positive = number(Whole(1, 10**9))
seed = number(Whole(0, 2**31 - 1))
spacing_mm = number(Number(0.1, 1000))
