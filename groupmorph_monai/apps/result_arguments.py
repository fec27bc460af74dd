"""What a registration writes beside the aligned series, as the command line takes it."""

import argparse

from .kinds import Whole
from .option_types import number

__all__ = ["add_results", "add_scan_pair"]


def add_results(p: argparse.ArgumentParser) -> None:
    """Add the options of ``groupmorph register`` that say what it writes."""
    p.add_argument(
        "--std",
        type=number(Whole(1, 10000), whole=True),
        metavar="N",
        help="also write how uncertain each displacement is, in mm, from N random draws (20 are enough)",
    )
    p.add_argument(
        "--jacobian", action="store_true", help="also write maps of local volume change (1: none, below 0: folded)"
    )
    p.add_argument(
        "--fields",
        choices=["full", "compact", "none"],
        help="deformation fields to write: 'compact' (default) on the coarse lattice that they are interpolated from, "
        "'full' on the grids of the scans, or 'none'",
    )
    p.add_argument(
        "--transforms",
        action="store_true",
        help="also write transform_KK.h5 and inverse_transform_KK.h5, for ITK, SimpleITK, ANTs and 3D Slicer",
    )
    p.add_argument(
        "--sequence",
        action="store_true",
        help="also write warped.seq.nrrd and transforms.seq.nrrd, which 3D Slicer opens as sequences in time",
    )
    p.add_argument(
        "--bids-names",
        action="store_true",
        help="also give transforms and images names such as from-scan02_to-common_mode-image_xfm and desc-aligned_T1w",
    )
    p.add_argument(
        "--kinetics",
        action="store_true",
        help="fit Tofts' model to a DCE-MRI series with times before and after registration: maps of Ktrans, of the "
        "goodness of fit (R2), of enhancement, its ratio and its time, and pictures in report.html; inside --mask, if "
        "given",
    )
    p.add_argument(
        "--dicom",
        action="store_true",
        help="also write the aligned series as DICOM (MR or CT), a new series of the study that was read",
    )
    p.add_argument(
        "--outside",
        choices=["zero", "nan", "border"],
        help="value of the aligned series and its mean where no scan has seen the voxel (default: zero); 'border': "
        "that of the nearest voxel",
    )


def add_scan_pair(p: argparse.ArgumentParser) -> None:
    """Add the two scans that a map leads between."""
    for option, name, letter in (("--from", "origin", "I"), ("--to", "target", "J")):
        p.add_argument(
            option,
            dest=name,
            required=True,
            type=number(Whole(0, 10000), whole=True),
            metavar=letter,
            help=f"number of scan {letter}, from 0",
        )
