"""Headers of images that are derived from those of a scanner, in the same study (DICOM PS3.3, C.7 and C.8)."""

from datetime import datetime

import pydicom
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, MRImageStorage, generate_uid

from ... import __version__
from ...errors import InputError
from .headers import Attributes, Plane

__all__ = ["check_modality", "code_item", "derived_header", "derived_object", "equipment_item"]

_STORAGE = {"MR": MRImageStorage, "CT": CTImageStorage}
_OF_EVERY_IMAGE = (  # patient, study, equipment, frame of reference, acquisition
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge", "PatientSize"),
    *("PatientWeight", "PatientIdentityRemoved", "DeidentificationMethod", "StudyInstanceUID", "StudyDate"),
    *("StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber", "StudyDescription", "Modality"),
    *("Manufacturer", "ManufacturerModelName", "InstitutionName", "StationName", "DeviceSerialNumber"),
    *("SoftwareVersions", "FrameOfReferenceUID", "PositionReferenceIndicator", "PatientPosition", "BodyPartExamined"),
    *("ProtocolName", "Laterality", "SliceThickness", "AcquisitionDate", "AcquisitionTime", "AcquisitionDateTime"),
    *("ContentDate", "ContentTime", "AcquisitionNumber", "TriggerTime", "TemporalResolution"),
)
_OF_HOME = ("Patient", "Study", "FrameOf", "PositionRef", "Accession", "Referring", "SliceThickness")  # begin so
_OF_MODALITY = {
    "MR": (
        *("ScanningSequence", "SequenceVariant", "ScanOptions", "MRAcquisitionType", "SequenceName", "RepetitionTime"),
        *("EchoTime", "EchoTrainLength", "InversionTime", "FlipAngle", "MagneticFieldStrength", "ImagedNucleus"),
        *("ImagingFrequency", "NumberOfAverages", "PixelBandwidth", "InPlanePhaseEncodingDirection"),
    ),
    "CT": ("KVP", "ConvolutionKernel", "FilterType", "GantryDetectorTilt", "ExposureTime", "XRayTubeCurrent"),
}
_REQUIRED = {  # what the standard wants even where nobody knows it, with the value that says so
    **dict.fromkeys(("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"), ""),
    **dict.fromkeys(("ReferringPhysicianName", "StudyID", "AccessionNumber", "Manufacturer"), ""),
    **dict.fromkeys(("PositionReferenceIndicator", "PatientPosition", "SliceThickness", "ContentDate"), ""),
    **dict.fromkeys(("ContentTime", "Laterality"), ""),
}
_REQUIRED_OF_MODALITY = {
    "MR": {
        **{"ScanningSequence": "RM", "SequenceVariant": "NONE", "ScanOptions": "", "MRAcquisitionType": ""},
        **{"RepetitionTime": "", "EchoTime": "", "EchoTrainLength": ""},
    },
    "CT": {"KVP": "", "AcquisitionNumber": ""},
}
_OF_EVERY_OBJECT = (
    *("SpecificCharacterSet", "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID"),
    *("StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber", "FrameOfReferenceUID"),
    *("PositionReferenceIndicator", "Laterality"),
)
_DESCRIPTION = "Group-wise deformable registration, resampled linearly"


def check_modality(plane: Plane) -> None:
    """Refuse, with an InputError, images of which no derived ones can be written."""
    if plane.source.modality not in _STORAGE:
        raise InputError(
            f"{plane.path}: expected MR or CT, of which aligned images can be written as DICOM, got "
            f"{plane.source.modality or 'no modality'}; leave out --dicom"
        )


def derived_header(plane: Plane, home: Plane) -> Dataset:
    """Make the header that the aligned images of one timepoint share.

    Args:
        plane: first slice of the timepoint in time: tells times and protocol.
        home: a slice of the scan on whose grid they lie: tells patient, study and frame of reference.
    """
    own, of_home = (_attributes(p) for p in (plane, home))
    modality, header = home.source.modality, Dataset()
    required = _REQUIRED | _REQUIRED_OF_MODALITY[modality]
    for name in dict.fromkeys([*_OF_EVERY_IMAGE, *_OF_MODALITY[modality], *required]):
        value = (of_home if name.startswith(_OF_HOME) else own).get(name, default=required.get(name))
        if value is not None:
            setattr(header, name, value)
    moment = own.get("FrameAcquisitionDateTime", "AcquisitionDateTime")
    if moment:  # an enhanced image has it in place of date and time
        header.AcquisitionDateTime = moment
        header.AcquisitionDate, header.AcquisitionTime = str(moment)[:8], str(moment).split("+")[0].split("-")[0][8:]
    header.SOPClassUID = _STORAGE[modality]
    header.SpecificCharacterSet = of_home.get("SpecificCharacterSet", default="ISO_IR 100")
    kind = plane.source.image_type[2] if len(plane.source.image_type) > 2 else "OTHER"
    header.ImageType = ["DERIVED", "SECONDARY", kind]
    header.DerivationDescription = _DESCRIPTION
    header.DerivationCodeSequence = [code_item(codes.DCM.SpatialResampling)]
    header.ContributingEquipmentSequence = [equipment_item()]
    return header


def derived_object(home: Plane, name: str, meaning: str, series_number: int) -> Dataset:
    """Make the header of an object of a new series that is derived from a study but is no image of a scanner.

    Args:
        home: a slice of the scan in whose study and frame of reference it lies.
        name: of the object; it follows the description of the source.
        meaning: what it holds.
        series_number: added to that of the source.
    """
    source, result, now = derived_header(home, home), Dataset(), datetime.now()
    for keyword in _OF_EVERY_OBJECT:
        if keyword in source:
            setattr(result, keyword, source[keyword].value)
    result.SOPInstanceUID, result.SeriesInstanceUID = generate_uid(), generate_uid()
    result.SeriesNumber, result.InstanceNumber = series_number + home.source.number, 1
    result.SeriesDescription = f"{home.source.description} {name}".strip()[:64]
    result.ContentLabel, result.ContentDescription, result.ContentCreatorName = name.upper(), meaning, ""
    result.ContentDate, result.ContentTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    equipment = equipment_item()
    result.Manufacturer, result.ManufacturerModelName = equipment.Manufacturer, equipment.ManufacturerModelName
    result.SoftwareVersions, result.DeviceSerialNumber = equipment.SoftwareVersions, "1"
    return result


def _attributes(plane: Plane) -> Attributes:
    return Attributes(pydicom.dcmread(plane.path, stop_before_pixels=True, force=True), plane.frame)


def code_item(code) -> Dataset:
    """A code as an item of a sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item


def equipment_item() -> Dataset:
    """This program, as it contributes to an object."""
    item = Dataset()
    item.Manufacturer, item.ManufacturerModelName = "GroupMorph contributors", "GroupMorph"
    item.SoftwareVersions = __version__
    item.ContributionDescription = _DESCRIPTION
    item.PurposeOfReferenceCodeSequence = [code_item(codes.DCM.ProcessingEquipment)]
    item.ContributionDateTime = datetime.now().strftime("%Y%m%d%H%M%S")
    return item
