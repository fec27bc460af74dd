"""The command that the module runs."""

from __future__ import annotations  # Slicer 5.2 has Python 3.9

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """Settings selected in the module's widgets.

    Args:
        program: the `groupmorph` command, such as ``/home/me/groupmorph/.venv/bin/groupmorph``, optionally with
            arguments.
        reference: index of the volume to which the others are aligned; None aligns all volumes to their common mean.
        effort: fast, normal, best, or none for the network's prediction alone.
        initial: affine, rigid or none.
        mask: label map; the similarity is evaluated only where it is above 0.
        overlays: names of the bundle's overlays, such as data/lung_ct.
    """

    program: str = "groupmorph"
    reference: int | None = None
    effort: str = "normal"
    initial: str = "affine"
    mask: str | None = None
    overlays: Sequence[str] = ()


def register_command(settings: Settings, volumes: Sequence[str], output: str) -> list[str]:
    """Build the `groupmorph register` command for ``volumes``, in temporal order, with results in ``output``."""
    words = [*_program(settings.program), "register", f"--output={output}", f"--initial={settings.initial}"]
    if settings.reference is not None:
        words.append(f"--reference={settings.reference}")
    words.append("--no-refine" if settings.effort == "none" else f"--effort={settings.effort}")
    words += [f"--overlay={name}" for name in settings.overlays]
    if settings.mask:
        words.append(f"--mask={settings.mask}")
    return [*words, "--", *volumes]


def _program(text: str) -> list[str]:
    """Return the path of a program as it is, as it may contain spaces and backslashes, or else split a command line."""
    try:
        words = [text] if Path(text).is_file() else shlex.split(text)
    except ValueError:  # an open quotation
        words = []
    if not words:
        raise ValueError(
            f"groupmorph program: expected the path of the program, got {text!r}; enter what 'which groupmorph' prints"
        )
    return words
