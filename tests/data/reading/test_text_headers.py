"""Damaged and contradictory headers of NRRD and MetaImage files, some of which crash ITK, are refused in one line."""

import gzip
import zlib

import itk
import numpy as np
import pytest

from groupmorph_monai.data.reading.readers import header_grids, read_image, read_series
from groupmorph_monai.errors import InputError

VOXELS = np.random.default_rng(0).integers(0, 1000, (5, 6, 4)).astype(np.int16)
RAW = VOXELS.T.tobytes()
AFFINE = np.diag([-2.0, -2.0, 3.0, 1.0])
NRRD = {"type": "short", "dimension": "3", "space": "left-posterior-superior", "sizes": "5 6 4",
        "space directions": "(2,0,0) (0,2,0) (0,0,3)", "kinds": "domain domain domain", "endian": "little",
        "encoding": "raw", "space origin": "(0,0,0)"}  # fmt: skip
META = {"ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False", "TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "0 0 0",
        "ElementSpacing": "2 2 3", "DimSize": "5 6 4", "ElementType": "MET_SHORT"}  # fmt: skip


def nrrd(path, data=RAW, **changes):
    fields = NRRD | {name.replace("_", " "): value for name, value in changes.items()}
    text = "".join(f"{name}: {value}\n" for name, value in fields.items() if value is not None)
    path.write_bytes(f"NRRD0004\n{text}\n".encode() + data)
    return path


def meta(path, data=RAW, ElementDataFile="LOCAL", after="", **changes):  # noqa: N803, as in the header
    fields = META | changes | {"ElementDataFile": ElementDataFile}
    text = "".join(f"{name} = {value}\n" for name, value in fields.items() if value is not None)
    path.write_bytes((text + after).encode() + data)
    return path


def check_volume(path):
    for labels in (False, True):
        image = read_image(path, labels)
        np.testing.assert_array_equal(image.data, VOXELS)
        np.testing.assert_allclose(image.affine, AFFINE)
    assert [grid.shape for grid in header_grids([path])] == [VOXELS.shape]


def check_refusal(path, expected, cure="correct the header"):
    with pytest.raises(InputError, match=expected) as error:
        read_image(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value) and cure in str(error.value)


def test_valid_files_of_every_layout(tmp_path):
    (tmp_path / "all.raw").write_bytes(RAW)
    (tmp_path / "all.gz").write_bytes(gzip.compress(RAW))
    for k in range(4):
        (tmp_path / f"slice{k}.raw").write_bytes(RAW[60 * k : 60 * (k + 1)])
    names, packed = "".join(f"slice{k}.raw\n" for k in range(4)), zlib.compress(RAW)
    check_volume(nrrd(tmp_path / "a.nrrd"))
    check_volume(nrrd(tmp_path / "b.nrrd", gzip.compress(RAW), encoding="gzip"))
    check_volume(nrrd(tmp_path / "c.nrrd", b"skipped" + RAW, byte_skip="-1"))
    check_volume(nrrd(tmp_path / "d.nhdr", b"", data_file="all.raw"))
    check_volume(nrrd(tmp_path / "e.nhdr", b"", data_file="all.gz", encoding="gz"))
    check_volume(nrrd(tmp_path / "f.nhdr", b"", data_file="slice%d.raw 0 3 1"))
    check_volume(meta(tmp_path / "a.mha"))
    check_volume(meta(tmp_path / "b.mha", packed, CompressedData="True", CompressedDataSize=len(packed)))
    check_volume(meta(tmp_path / "c.mhd", b"", "all.raw", HeaderSize="-1"))
    check_volume(meta(tmp_path / "d.mhd", names.encode(), "LIST"))
    check_volume(meta(tmp_path / "e.mhd", b"", "slice%d.raw 0 3 1"))


def test_optional_parts_of_nrrd(tmp_path):
    check_volume(nrrd(tmp_path / "a.nrrd", content=""))
    check_volume(nrrd(tmp_path / "b.nrrd", content="series of a patient " * 50))
    members = gzip.compress(RAW[:100]) + gzip.compress(RAW[100:])
    check_volume(nrrd(tmp_path / "c.nrrd", members, encoding="gzip"))
    check_volume(nrrd(tmp_path / "d.nrrd", members + b"\n", encoding="gzip"))


def test_optional_parts_of_metaimage(tmp_path):
    """DICOM attributes, which ITK writes too, empty lines, and data files whose names contain spaces."""
    check_volume(meta(tmp_path / "a.mha", **{"0008|0060": "MR", "0018|1030": "t1: vibe = dynamic"}))
    check_volume(meta(tmp_path / "b.mha", Comment="made by hand\n"))
    (tmp_path / "c.mha").write_bytes((tmp_path / "a.mha").read_bytes().replace(b" = ", b": ", 5))
    check_volume(tmp_path / "c.mha")
    for name, start in (("e", b"\n"), ("f", b"\r\n"), ("g", b"\t")):
        (tmp_path / f"{name}.mha").write_bytes(start + (tmp_path / "a.mha").read_bytes().replace(b" =", b"\t=", 1))
        check_volume(tmp_path / f"{name}.mha")
    for k in range(4):
        (tmp_path / f"slice {k}.raw").write_bytes(RAW[60 * k : 60 * (k + 1)])
    check_volume(meta(tmp_path / "d.mhd", "".join(f"slice {k}.raw\r\n" for k in range(4)).encode(), "LIST"))


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".nhdr", ".mhd"])
def test_files_written_by_itk(tmp_path, ending):
    image = itk.image_from_array(np.ascontiguousarray(VOXELS.T))
    image.SetSpacing([2.0, 2.0, 3.0])
    image.GetMetaDataDictionary()["0008|0070"] = "SIEMENS "  # as after reading DICOM
    for compressed in (False, True):
        itk.imwrite(image, str(tmp_path / f"scan{ending}"), compression=compressed)
        check_volume(tmp_path / f"scan{ending}")


@pytest.mark.parametrize("ending", [".vtk", ".gipl", ".gipl.gz", ".tif", ".h5"])
def test_formats_whose_headers_are_not_checked(tmp_path, ending):
    """ITK takes a VTK file with DIMENSIONS 5 6 2 for a smaller volume, for instance."""
    itk.imwrite(itk.image_from_array(np.ascontiguousarray(VOXELS.T)), str(tmp_path / f"scan{ending}"))
    check_refusal(tmp_path / f"scan{ending}", "another kind of file", "convert it to NIfTI")


def test_a_dicom_file_among_others(tmp_path):
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM" + bytes(100))
    check_refusal(tmp_path / "a.dcm", "another kind of file", "without files of other kinds")


def test_nrrd_with_another_ending(tmp_path):
    check_refusal(nrrd(tmp_path / "scan.xyz"), "an ending of its format", "rename it to .nrrd")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"type": "x" * 5000}, "each once"),  # ITK crashes
        ({"type": "x" * 80}, "a known type"),
        ({"type": "block"}, "a known type, such as short, got 'block'"),
        ({"dimension": "99"}, "dimension from 2 to 5"),
        ({"sizes": "5 6 0"}, "3 positive integers"),
        ({"sizes": "99999 99999 99999"}, "bytes of voxels"),
        ({"sizes": "5 6 3"}, "180 bytes of voxels"),
        ({"space directions": "(nan,0,0) (0,2,0) (0,0,3)"}, "finite numbers"),
        ({"space directions": "none (0,2,0) (0,0,3)"}, "as many 'space directions'"),
        ({"space directions": None}, "voxel sizes"),
        ({"space directions": "none none none"}, "voxel sizes"),
        ({"space origin": "(1,0,0) (0,1,0)"}, "one 'space origin'"),
        ({"kinds": "domain"}, "3 kinds"),
        ({"endian": None}, "endian"),
        ({"encoding": "zrl"}, "encoding"),
        ({"encoding": "bzip2"}, "encoding raw, gzip, ascii or hex, got 'bzip2'"),
        ({"encoding": "gzip"}, "bytes of voxels"),
        ({"data file": "%s%s%n.raw 0 3 1"}, "of the form"),
        ({"data file": "absent.raw"}, "an existing data file"),
    ],
)
def test_damaged_nrrd(tmp_path, changes, expected):
    check_refusal(nrrd(tmp_path / "scan.nrrd", **changes), expected)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"space": None}, "don't yet have a valid space dimension"), ({"line skip": "3"}, "fread got only")],
)
def test_the_last_cause_that_the_library_gives_is_named(tmp_path, changes, reason):
    check_refusal(nrrd(tmp_path / "scan.nrrd", **changes), f"an unreadable one .{reason}", "copy or convert it again")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"NDims": "99"}, "NDims from 2 to 5"),  # ITK aborts
        ({"NDims": "-1"}, "NDims from 2 to 5"),  # ITK crashes
        ({"NDims": "1"}, "NDims from 2 to 5"),  # ITK takes 20 seconds
        ({"DimSize": "5 6"}, "3 positive integers"),
        ({"DimSize": "65536 65536 1"}, "bytes of voxels"),
        ({"DimSize": "5 6 3"}, "180 bytes of voxels"),
        ({"ElementSpacing": "2 2 nan"}, "finite numbers"),
        ({"ElementSpacing": "-2 2 3"}, "positive ElementSpacing"),
        ({"ElementSpacing": None}, "ElementSpacing"),  # ITK takes 1 mm
        ({"TransformMatrix": "1 0 0"}, "9 finite numbers"),
        ({"Offset": "10"}, "3 finite numbers"),  # ITK takes 10 0 0
        ({"ElementType": "MET_STRING"}, "a known ElementType"),
        ({"ElementNumberOfChannels": "0"}, "ElementNumberOfChannels from 1"),
        ({"BinaryDataByteOrderMSB": "17"}, "True or False"),
        ({"CompressedData": "True"}, "CompressedDataSize"),
        ({"CompressedData": "True", "CompressedDataSize": "240"}, "bytes of voxels"),
        ({"HeaderSize": "-2"}, "HeaderSize"),
        ({"CompressedData": "True", "HeaderSize": "-1", "CompressedDataSize": "240"}, "HeaderSize"),
        ({"ElementDataFile": "%s%n.raw 0 3 1"}, "of the form"),
        ({"ElementDataFile": "absent.raw"}, "an existing data file"),
        ({"after": "AnatomicalOrientation = RAI\n"}, "240 bytes of voxels"),  # ITK reads it as voxels
    ],
)
def test_damaged_metaimage(tmp_path, changes, expected):
    check_refusal(meta(tmp_path / "scan.mha", **changes), expected)


@pytest.mark.parametrize("unit", ["um", "\u00b5m", "\u03bcm", "micrometer", "cm", "m", "Meters", "inch"])
def test_lengths_in_other_units_than_millimetres(tmp_path, unit):
    """ITK would read 100 um as 100 mm."""
    check_refusal(
        nrrd(tmp_path / "a.nrrd", space_units=f'"{unit}" "{unit}" "{unit}"'), "expected 'space units' and numbers in mm"
    )
    check_refusal(nrrd(tmp_path / "b.nrrd", units=f'"{unit}" "" ""'), "expected 'units' and numbers in mm")
    check_refusal(meta(tmp_path / "a.mha", DistanceUnits=unit), "expected 'DistanceUnits' and numbers in mm")


@pytest.mark.parametrize("unit", ["mm", "millimeters", "???", "", "unknown"])
def test_lengths_in_millimetres_or_without_a_unit(tmp_path, unit):
    check_volume(nrrd(tmp_path / "a.nrrd", space_units=f'"{unit}" "{unit}" "{unit}"'))
    check_volume(meta(tmp_path / "a.mha", DistanceUnits=unit))


SERIES = {"dimension": "4", "sizes": "5 6 4 2", "space": None, "space origin": None, "space directions": None,
          "spacings": "2 2 3 30", "kinds": "space space space time"}  # fmt: skip


@pytest.mark.parametrize("unit, refused", [("ms", True), ("msec", True), ("min", True), ("s", False), ("sec", False)])
def test_times_in_other_units_than_seconds(tmp_path, unit, refused):
    path = nrrd(tmp_path / "a.nrrd", 2 * RAW, **SERIES, units=f'"mm" "mm" "mm" "{unit}"')
    if refused:
        check_refusal(path, f"expected 'units' and numbers in s, as ITK reads all as s, got '{unit}'")
    else:
        assert read_series(path).times_s == (0, 30)


@pytest.mark.parametrize("kinds", ["time space space space", "space space time space"])
def test_time_before_space(tmp_path, kinds):
    check_refusal(
        nrrd(tmp_path / "a.nrrd", 2 * RAW, **SERIES | {"kinds": kinds}), f"expected time as the last axis, got '{kinds}"
    )


def test_space_and_directions_of_a_series(tmp_path):
    directions = "(2,0,0) (0,2,0) (0,0,3) none"
    changes = SERIES | {"space": NRRD["space"], "spacings": None, "space directions": directions}
    check_refusal(nrrd(tmp_path / "a.nrrd", 2 * RAW, **changes), "expected a direction for each axis of space and time")
    directions = "(2,0,0,0) (0,2,0,0) (0,0,3,0) (0,0,0,30)"
    changes |= {"space": "left-posterior-superior-time", "space directions": directions}
    assert read_series(nrrd(tmp_path / "b.nrrd", 2 * RAW, **changes)).times_s == (0, 30)
    for space in ("right-anterior-superior-time", "RAST", "left-anterior-superior-time"):  # ITK would not flip the axes
        check_refusal(
            nrrd(tmp_path / "c.nrrd", 2 * RAW, **changes | {"space": space}), "expected space left-posterior-superior-"
        )


@pytest.mark.parametrize(
    "matrix", ["1 0 0 0 0 1 0 0 0 0 0.8 0.6 0 0 -0.6 0.8", "0 0 0 1 0 1 0 0 0 0 1 0 1 0 0 0"], ids=["turned", "first"]
)
def test_directions_that_mix_space_and_time(tmp_path, matrix):
    changes = {"NDims": "4", "DimSize": "5 6 4 2", "Offset": "0 0 0 0", "ElementSpacing": "2 2 3 30"}
    check_refusal(
        meta(tmp_path / "a.mha", 2 * RAW, TransformMatrix=matrix, **changes), "expected time as an axis of its own"
    )
    straight = "1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1"
    assert read_series(meta(tmp_path / "b.mha", 2 * RAW, TransformMatrix=straight, **changes)).times_s == (0, 30)


def test_checksum_of_compressed_voxels(tmp_path):
    packed = bytearray(gzip.compress(RAW))
    packed[-6] ^= 1
    check_refusal(nrrd(tmp_path / "scan.nrrd", bytes(packed), encoding="gzip"), "240 bytes of voxels")


def test_voxels_that_decompress_to_far_more(tmp_path):
    check_refusal(nrrd(tmp_path / "scan.nrrd", gzip.compress(bytes(1 << 24)), encoding="gzip"), "got 'more bytes'")
