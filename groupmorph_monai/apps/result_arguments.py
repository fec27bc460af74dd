"""Command-line options for the outputs of a registration."""

import argparse

from .kinds import Whole
from .option_types import number, scan

_PRODUCTS = {
    "--transforms": "also write transform_KK.h5 and inverse_transform_KK.h5, for ITK, SimpleITK, ANTs and 3D Slicer",
    "--sequence": "also write warped.seq.nrrd and transforms.seq.nrrd, which 3D Slicer opens as sequences",
    "--bids-names": "also write transforms and images under BIDS names, such as from-scan02_to-common_mode-image_xfm",
    "--kinetics": "fit the Tofts model to a DCE-MRI series with acquisition times, before and after registration: maps "
    "of Ktrans, goodness of fit (R2), enhancement, enhancement ratio and time to peak, figures in report.html; inside "
    "--mask, if given",
    "--dicom": "also write the aligned scans as a new DICOM series (MR or CT) of the input study",
}


def add_results(p: argparse.ArgumentParser) -> None:
    """Add the options of ``groupmorph register`` that select its outputs."""
    p.add_argument(
        "--std",
        type=number(Whole(1, 10000)),
        metavar="N",
        help="also write the standard deviation of each displacement in mm, from N random draws (20 are enough)",
    )
    p.add_argument(
        "--jacobian",
        action="store_true",
        help="also write Jacobian determinants (1: no volume change, below 0: folded)",
    )
    p.add_argument(
        "--fields",
        choices=["full", "compact", "none"],
        help="deformation fields to write: 'compact' (default) on the coarse grid from which they are interpolated, "
        "'full' on the grids of the scans, or 'none'",
    )
    for option, description in _PRODUCTS.items():
        p.add_argument(option, action="store_true", help=description)
    p.add_argument(
        "--outside",
        choices=["zero", "nan", "border"],
        help="value of the aligned series and its mean outside the scans' field of view (default: zero); 'border': "
        "the nearest voxel's value",
    )


def add_scan_pair(p: argparse.ArgumentParser) -> None:
    """Add ``--from`` and ``--to``, the two scans that a transform connects."""
    for option, name, letter in (("--from", "origin", "I"), ("--to", "target", "J")):
        p.add_argument(
            option,
            dest=name,
            required=True,
            type=scan,
            metavar=letter,
            help=f"number of scan {letter}, starting from 0",
        )
