"""Translate options of ``groupmorph register`` and ``groupmorph cohort`` into settings of the bundle."""

import argparse
import os
from collections.abc import Sequence
from typing import Any

from ..data.reading.folders import dicom_paths
from ..errors import InputError
from .places import absolute_paths

_MODES_OF_COMMANDS = {"modes/sample": "sample", "modes/transport": "transport"}


def check_modes(overlays: Sequence[str], purpose: str) -> None:
    """Refuse the overlays of commands that generate deformations.

    Raises:
        InputError: For such an overlay.
    """
    for mode, command in _MODES_OF_COMMANDS.items():
        if mode in overlays:
            raise InputError(f"--overlay {mode}: expected an overlay for {purpose}; use groupmorph {command}")


def _check_description(description: str | None, files: Sequence[str]) -> None:
    if description and files and all(map(os.path.isfile, files)) and not dicom_paths(files):
        raise InputError(
            f"--series-description: expected a folder or DICOM files to choose from, got {files[0]}; omit the option"
        )


def registration(args: argparse.Namespace) -> tuple[tuple[str, list[str], list[str], str | None], dict[str, Any]]:
    """Translate the options of ``groupmorph register`` into arguments of `checked_run`.

    Raises:
        InputError: If a mask or a description of the series has no effect.
    """
    overlays, chosen = list(args.overlay), {}
    check_modes(overlays, "registration")
    _check_description(args.series_description, args.files)
    if args.reference != "mean":
        overlays, chosen = [*overlays, "modes/all_to_one"], {"reference": int(args.reference)}
    if args.no_refine:
        if args.mask and args.initial == "none" and not args.kinetics:
            raise InputError(
                "--mask: expected a refinement or an initial alignment that uses it, got --no-refine and --initial "
                "none; omit one"
            )
        overlays.append("effort/no_refine")
    elif args.effort not in (None, "normal"):
        overlays.append(f"effort/{args.effort}")
    options = dict(
        series=absolute_paths(args.files),
        series_description=args.series_description,
        weights=args.weights,
        spacing_mm=args.spacing_mm,
        std_draws=args.std,
        write_jacobian=args.jacobian or None,
        write_fields=args.fields,
        write_transforms=args.transforms or None,
        write_dicom=args.dicom or None,
        write_sequence=args.sequence or None,
        write_bids_names=args.bids_names or None,
        write_kinetics=args.kinetics or None,
        outside=args.outside,
        initial_alignment=args.initial,
        mask=args.mask and absolute_paths(args.mask),
        region=args.region and absolute_paths(args.region),
        **chosen,
    )
    return ("inference", overlays, args.set, args.device), options
