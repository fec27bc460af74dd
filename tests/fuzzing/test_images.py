"""Read damaged and contradictory image files as scans of a series."""

import functools
import gzip
import io
import json
import tempfile
from itertools import chain
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from dicom_exports import classic, examination, write
from fuzz import LENGTHS, answer, check_examples, damaged, json_values, odd_floats
from hypothesis import strategies as st

from groupmorph_monai.data.reading.readers import read_image, read_series
from groupmorph_monai.data.series import Series
from groupmorph_monai.errors import InputError

SIZE, AFFINE = (5, 6, 4), np.diag([2.0, 2.0, 3.0, 1.0])
VOXELS = np.random.default_rng(0).integers(0, 1000, SIZE).astype(np.int16)
NIFTI = nibabel.Nifti1Image(VOXELS, AFFINE).to_bytes()
NIFTI_HEADER, NRRD_FIELDS, MHA_FIELDS = 352, 12, 10
FIELDS = {
    "dim": st.lists(st.sampled_from([-1, 0, 1, 2, 4, 7, 8, 300, 32767]), min_size=8, max_size=8),
    "pixdim": st.lists(odd_floats, min_size=8, max_size=8),
    "datatype": st.sampled_from([0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1536, 1792, 2048, 2304, 9999]),
    "bitpix": st.sampled_from([-1, 0, 1, 8, 16, 32, 64, 128]),
    "vox_offset": odd_floats,
    "scl_slope": odd_floats,
    "scl_inter": odd_floats,
    "xyzt_units": st.integers(0, 255),
    "qform_code": st.integers(-2, 6),
    "sform_code": st.integers(-2, 6),
    "quatern_b": odd_floats,
    "qoffset_x": odd_floats,
    "srow_x": st.lists(odd_floats, min_size=4, max_size=4),
    "srow_z": st.lists(odd_floats, min_size=4, max_size=4),
    "intent_code": st.sampled_from([0, 1006, 1007, -1, 9999]),
}


@st.composite
def nifti(draw):
    """Make a NIfTI file with unusual values or random bytes, compressed or not, and its ending."""
    content = bytearray(NIFTI)
    header = nibabel.Nifti1Header.from_fileobj(io.BytesIO(NIFTI), check=False)
    for name in draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=3)):
        header[name] = draw(FIELDS[name])
    content[:348] = header.binaryblock
    content = draw(damaged(bytes(content), NIFTI_HEADER))
    if draw(st.booleans()):
        return content, ".nii"
    whole = gzip.compress(content, 1, mtime=0)
    return draw(st.sampled_from([whole, draw(damaged(whole, 10))])), ".nii.gz"


def texts(fields):
    """Generate values that replace some lines of a text header."""
    values = st.sampled_from(
        ["", "0", "-1", "3", "4", "5 6 4", "5 6", "5 6 4 2", "99999 99999 99999", "nan", "inf", "1e308", "x", "short",
         "gzip", "raw", "(1,0,0) (0,1,0) (0,0,1)", "(0,0,0) (0,0,0) (0,0,0)", "none (1,0,0) (0,1,0)", "(nan,0,0)",
         "left-posterior-superior", "scanner-xyz", "1 0 0 0 1 0 0 0 0", "MET_SHORT", "MET_FLOAT", "LIST", "LOCAL",
         "absent.raw", "True", "False", "domain domain domain", "vector domain domain domain"]
    )  # fmt: skip

    def lines(names):
        value = st.sampled_from(names).flatmap(lambda name: st.tuples(st.just(name), values))
        return st.lists(value, max_size=3)

    return lines(list(fields))


NRRD = {"type": "short", "dimension": "3", "space": "left-posterior-superior", "sizes": "5 6 4",
        "space directions": "(2,0,0) (0,2,0) (0,0,3)", "kinds": "domain domain domain", "endian": "little",
        "encoding": "raw", "space origin": "(0,0,0)"}  # fmt: skip
MHA = {"ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
       "TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "0 0 0", "ElementSpacing": "2 2 3", "DimSize": "5 6 4",
       "ElementType": "MET_SHORT", "ElementDataFile": "LOCAL"}  # fmt: skip


@st.composite
def nrrd(draw):
    fields = dict(NRRD) | dict(draw(texts(NRRD)))
    text = "NRRD0004\n" + "".join(f"{name}: {value}\n" for name, value in fields.items()) + "\n"
    return draw(damaged(text.encode() + VOXELS.T.tobytes(), len(text))), ".nrrd"


@st.composite
def mha(draw):
    fields = dict(MHA) | dict(draw(texts(MHA)))
    text = "".join(f"{name} = {value}\n" for name, value in fields.items())
    return draw(damaged(text.encode() + VOXELS.T.tobytes(), len(text))), ".mha"


def read(tmp_path_factory, content, ending):
    """Read a file in a series, after a valid scan, and alone as a label map."""
    folder = tmp_path_factory.mktemp("scans")
    (folder / "good.nii").write_bytes(NIFTI)
    scan = folder / f"scan{ending}"
    scan.write_bytes(content)
    series = answer(folder, lambda: read_series([folder / "good.nii", scan]))
    assert isinstance(series, InputError) or all(np.isfinite(frame.data).all() for frame in series.frames)
    answer(folder, lambda: read_image(scan, labels=True))


@LENGTHS
def test_nifti(tmp_path_factory, length):
    check_examples(length, nifti(), lambda file: read(tmp_path_factory, *file))


@LENGTHS
def test_nrrd_and_mha(tmp_path_factory, length):
    check_examples(length, nrrd() | mha(), lambda file: read(tmp_path_factory, *file))


@functools.cache
def dicom_files():
    """Return the bytes of each slice of two timepoints."""
    scans = [classic(examination(), VOXELS.astype(np.uint16), AFFINE, AcquisitionTime=f"10150{k}") for k in range(2)]
    with tempfile.TemporaryDirectory() as folder:
        return [write(image, Path(folder) / "file").read_bytes() for image in chain(*scans)]


ATTRIBUTES = ("Rows", "Columns", "BitsStored", "BitsAllocated", "HighBit", "PixelRepresentation", "SamplesPerPixel",
              "NumberOfFrames", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope",
              "RescaleIntercept", "SeriesInstanceUID", "SOPInstanceUID", "ImageType", "AcquisitionTime", "SeriesNumber",
              "InstanceNumber", "EchoTime", "PhotometricInterpretation")  # fmt: skip
VALUES = ("0", "-1", "1", "2", "16", "65535", "99999999999999999999", "nan", "inf", "1e999", "", "x", "MOSAIC",
          ["0", "0", "0"], ["1", "0", "0", "1", "0", "0"], ["nan", "1"], ["1e300", "1e300", "1e300"])  # fmt: skip


@st.composite
def dicom(draw):
    """Make a study with one file that is damaged or contains unusual values."""
    files = list(dicom_files())
    number = draw(st.integers(0, len(files) - 1))
    if draw(st.booleans()):
        files[number] = draw(damaged(files[number], len(files[number]) - VOXELS[..., 0].nbytes))
        return files
    dataset = pydicom.dcmread(io.BytesIO(files[number]))
    for name, value in draw(st.lists(st.tuples(st.sampled_from(ATTRIBUTES), st.sampled_from(VALUES)), max_size=2)):
        stream = io.BytesIO()
        try:
            setattr(dataset, name, value)
            dataset.save_as(stream)
        except Exception:  # no scanner writes what pydicom cannot write
            break
        files[number] = stream.getvalue()
    return files


def read_study(tmp_path_factory, files):
    folder = tmp_path_factory.mktemp("study")
    for n, content in enumerate(files):
        (folder / f"IM{n:04d}").write_bytes(content)
    series = answer(folder, lambda: read_series(folder))
    assert isinstance(series, InputError | Series)


@LENGTHS
def test_dicom(tmp_path_factory, length):
    check_examples(length, dicom(), lambda files: read_study(tmp_path_factory, files))


SIDECAR_KEYS = ("AcquisitionTime", "AcquisitionDateTime", "TriggerDelayTime", "FrameTimesStart", "VolumeTiming",
                "RepetitionTime", "MRAcquisitionType", "SeriesDescription")  # fmt: skip
sidecars = st.dictionaries(st.sampled_from(SIDECAR_KEYS), json_values, max_size=4).map(json.dumps) | st.sampled_from(
    ["null", "{", '{"RepetitionTime": 1e999}']
)


def read_sidecars(tmp_path_factory, contents):
    folder = tmp_path_factory.mktemp("scans")
    for n, content in enumerate(contents):
        (folder / f"t{n}.nii").write_bytes(NIFTI)
        (folder / f"t{n}.json").write_text(content, encoding="utf-8", errors="surrogatepass")
    series = answer(folder, lambda: read_series(folder))
    assert isinstance(series, Series) and (series.times_s is None or np.isfinite(series.times_s).all())


@LENGTHS
def test_sidecars(tmp_path_factory, length):
    check_examples(length, st.tuples(sidecars, sidecars), lambda contents: read_sidecars(tmp_path_factory, contents))
