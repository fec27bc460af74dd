"""Headers of images derived from those of a scanner, in the same study (DICOM PS3.3, C.7 and C.8)."""

import os
import re
from collections.abc import Sequence
from datetime import datetime

import pydicom
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import CTImageStorage, MRImageStorage, generate_uid

from ... import __version__
from ...errors import InputError
from .attributes import Attributes
from .clocks import local_acquisition
from .geometry import decimals
from .plane import Plane

STORAGE = {"MR": MRImageStorage, "CT": CTImageStorage}
_IMAGE_ATTRIBUTES = (  # patient, study, equipment, frame of reference, acquisition
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge", "PatientSize"),
    *("PatientWeight", "PatientIdentityRemoved", "DeidentificationMethod", "StudyInstanceUID", "StudyDate"),
    *("StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber", "StudyDescription", "Modality"),
    *("Manufacturer", "ManufacturerModelName", "InstitutionName", "StationName", "DeviceSerialNumber"),
    *("SoftwareVersions", "FrameOfReferenceUID", "PositionReferenceIndicator", "PatientPosition", "BodyPartExamined"),
    *("ProtocolName", "Laterality", "SliceThickness", "AcquisitionDate", "AcquisitionTime", "AcquisitionDateTime"),
    *("ContentDate", "ContentTime", "AcquisitionNumber", "TriggerTime", "PhotometricInterpretation"),
    "TimezoneOffsetFromUTC",
)
_HOME_PREFIXES = (  # prefixes of the attributes taken from the scan that defines the grid
    *("Patient", "Study", "FrameOf", "PositionRef", "Accession", "Referring", "SliceThickness", "Photometric"),
)
_MODALITY_ATTRIBUTES = {
    "MR": (
        *("ScanningSequence", "SequenceVariant", "ScanOptions", "MRAcquisitionType", "SequenceName", "RepetitionTime"),
        *("EchoTime", "EchoTrainLength", "InversionTime", "FlipAngle", "MagneticFieldStrength", "ImagedNucleus"),
        *("ImagingFrequency", "NumberOfAverages", "PixelBandwidth", "InPlanePhaseEncodingDirection"),
    ),
    "CT": ("KVP", "ConvolutionKernel", "FilterType", "ExposureTime", "XRayTubeCurrent"),
}
_REQUIRED = {  # attributes required by the standard, with the value that means unknown
    **dict.fromkeys(("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"), ""),
    **dict.fromkeys(("ReferringPhysicianName", "StudyID", "AccessionNumber", "Manufacturer"), ""),
    **dict.fromkeys(("PositionReferenceIndicator", "PatientPosition", "SliceThickness", "ContentDate"), ""),
    **dict.fromkeys(("ContentTime", "Laterality"), ""),
    "PhotometricInterpretation": "MONOCHROME2",
}
_REQUIRED_OF_MODALITY = {
    "MR": {
        **{"ScanningSequence": "RM", "SequenceVariant": "NONE", "ScanOptions": "", "MRAcquisitionType": ""},
        **{"RepetitionTime": "", "EchoTime": "", "EchoTrainLength": ""},
    },
    "CT": {"KVP": "", "AcquisitionNumber": ""},
}
_OBJECT_ATTRIBUTES = (
    *("SpecificCharacterSet", "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID"),
    *("StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber", "FrameOfReferenceUID"),
    *("PositionReferenceIndicator", "Laterality"),
)
_LONGEST = 64  # maximum number of characters of a description
_DESCRIPTION = "Group-wise deformable registration, resampled linearly"


def check_sources(slices: Sequence[Sequence[Plane]], home: int) -> None:
    """Check that derived images can be written: for the modality, and with references to the sources.

    Args:
        slices: slices of each timepoint.
        home: index of the scan that defines the modality.

    Raises:
        InputError: If they cannot.
    """
    base = slices[home][0]
    modality = base.source.examination.modality
    if modality not in STORAGE:
        raise InputError(
            f"{base.file.path}: expected MR or CT, the modalities supported by --dicom, got "
            f"{modality or 'no modality'}; omit --dicom"
        )
    for plane in (plane for planes in slices for plane in planes):
        examination = plane.source.examination
        uids = {
            "StudyInstanceUID": examination.study,
            "FrameOfReferenceUID": examination.space,
            "SeriesInstanceUID": plane.source.series,
            "SOPInstanceUID": plane.file.uid != plane.file.path,
        }
        if missing := [name for name, uid in uids.items() if not uid]:
            raise InputError(
                f"{plane.file.path}: expected {' and '.join(missing)}, to which the results of --dicom refer, got "
                "none; omit --dicom"
            )


def derived_header(plane: Plane, home: Plane) -> Dataset:
    """Make the header shared by the aligned images of one timepoint.

    Args:
        plane: first slice of the timepoint in time, for times and protocol.
        home: a slice of the scan that defines the output grid, for patient, study and frame of reference.
    """
    files = [p.file for p in (plane, home)]
    own, of_home = (Attributes(pydicom.dcmread(f.path, stop_before_pixels=True, force=True), f.frame) for f in files)
    modality, header = home.source.examination.modality, Dataset()
    required = _REQUIRED | _REQUIRED_OF_MODALITY[modality]
    for name in dict.fromkeys([*_IMAGE_ATTRIBUTES, *_MODALITY_ATTRIBUTES[modality], *required]):
        value = _value(of_home if name.startswith(_HOME_PREFIXES) else own, name)
        value = required.get(name) if value is None else value
        if value is not None:
            setattr(header, name, value)
    for name, value in local_acquisition(own).items():
        setattr(header, name, value)
    header.SOPClassUID = STORAGE[modality]
    sets = [source.get("SpecificCharacterSet", default="ISO_IR 100") for source in (of_home, own)]
    header.SpecificCharacterSet = sets[0] if sets[0] == sets[1] else "ISO_IR 192"  # UTF-8
    kind = plane.source.image_type[2] if len(plane.source.image_type) > 2 else "OTHER"
    header.ImageType = ["DERIVED", "SECONDARY", kind]
    header.DerivationDescription = _DESCRIPTION
    header.DerivationCodeSequence = [code_item(codes.DCM.SpatialResampling)]
    header.ContributingEquipmentSequence = [equipment_item()]
    return header


def _value(attributes: Attributes, name: str) -> object:
    """Return the value of an attribute, with decimal points for commas; None if it is missing or an invalid number,
    which cannot be written."""
    representation = dictionary_VR(name)
    if representation in ("TM", "DT"):
        return attributes.text(name).replace(",", ".") or None
    if representation not in ("DS", "IS"):
        return attributes.get(name)
    numbers = attributes.numbers(name)
    if representation == "DS":
        return decimals(numbers) or None
    return [int(number) for number in numbers if number == int(number) and abs(number) < 2**31] or None


def derived_description(slices: Sequence[Sequence[Plane]], home: int, name: str) -> str:
    """Describe a new series: words that begin all timepoints' descriptions, such as "t1_fl3d" of "t1_fl3d_pre" and
    "t1_fl3d_dyn_1", or else the description of scan ``home``, shortened if necessary, and ``name``. A backslash, which
    would separate two values, becomes a slash."""
    descriptions = [planes[0].source.description.replace("\\", "/") for planes in slices]
    match = re.match(r"(.*\w)[\s_-]", os.path.commonprefix(descriptions)) if len(set(descriptions)) > 1 else None
    words = match[1].rstrip(" _-") if match else ""
    return f"{(words or descriptions[home])[: _LONGEST - len(name) - 1]} {name}".strip()


def derived_object(
    slices: Sequence[Sequence[Plane]], home: int, name: str, meaning: str, series_number: int
) -> Dataset:
    """Make the header of a derived object, other than an image of a scanner, in a new series of a study.

    Args:
        slices: slices of each timepoint.
        home: index of the scan that defines the study and frame of reference.
        name: name of the object, appended to the description of the timepoints.
        meaning: description of its content.
        series_number: added to the series number of the source.
    """
    base, result, now = slices[home][0], Dataset(), datetime.now()
    source = derived_header(base, base)
    for keyword in _OBJECT_ATTRIBUTES:
        if keyword in source:
            setattr(result, keyword, source[keyword].value)
    result.SOPInstanceUID, result.SeriesInstanceUID = generate_uid(), generate_uid()
    result.SeriesNumber, result.InstanceNumber = series_number + base.source.number, 1
    result.SeriesDescription = derived_description(slices, home, name)
    result.ContentLabel, result.ContentDescription, result.ContentCreatorName = name.upper(), meaning, ""
    result.ContentDate, result.ContentTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    equipment = equipment_item()
    result.Manufacturer, result.ManufacturerModelName = equipment.Manufacturer, equipment.ManufacturerModelName
    result.SoftwareVersions, result.DeviceSerialNumber = equipment.SoftwareVersions, "1"
    return result


def item(**attributes: object) -> Dataset:
    """Make a sequence item of attributes."""
    dataset = Dataset()
    for name, value in attributes.items():
        setattr(dataset, name, value)
    return dataset


def code_item(code: Code) -> Dataset:
    """Make a sequence item of a code."""
    return item(CodeValue=code.value, CodingSchemeDesignator=code.scheme_designator, CodeMeaning=code.meaning)


def equipment_item() -> Dataset:
    """Describe this program as contributing equipment."""
    return item(
        Manufacturer="GroupMorph contributors",
        ManufacturerModelName="GroupMorph",
        SoftwareVersions=__version__,
        ContributionDescription=_DESCRIPTION,
        PurposeOfReferenceCodeSequence=[code_item(codes.DCM.ProcessingEquipment)],
        ContributionDateTime=datetime.now().strftime("%Y%m%d%H%M%S"),
    )
