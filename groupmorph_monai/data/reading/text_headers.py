"""Check the text headers of NRRD and MetaImage files before ITK reads them.

ITK crashes on some damaged headers, replaces some invalid values with defaults, and ignores bytes that do not fit the
declared size. Valid files of other programs pass: only what contradicts itself or the file is refused.
"""

import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ...errors import InputError
from .signature import GZIP_START, other_content

_LONGEST_HEADER, _LONGEST_VALUE = 1 << 20, 500  # maximum bytes of a header, and characters of a value that ITK can read
_CHUNK = 1 << 20  # bytes decompressed at a time
_MOST_FILES = 100_000  # maximum number of files of one volume
_META_ENDINGS = (".mha", ".mhd")
_META_BYTES = {"CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "LONG": 4, "ULONG": 4,
               "LONG_LONG": 8, "ULONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}  # fmt: skip
_META_NUMBERS = {"ElementSpacing": 1, "ElementSize": 1, "Offset": 1, "Position": 1, "Origin": 1, "CenterOfRotation": 1,
                 "TransformMatrix": 2, "Rotation": 2, "Orientation": 2}  # power of NDims  # fmt: skip
_META_FLAGS = ("BinaryData", "BinaryDataByteOrderMSB", "ElementByteOrderMSB", "CompressedData")
_NRRD_BYTES = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t"), 4),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "signed long long int"), 8),
    **dict.fromkeys(("int64", "int64_t", "ulonglong", "unsigned long long", "unsigned long long int"), 8),
    **dict.fromkeys(("uint64", "uint64_t", "double"), 8),
    "float": 4,
}
_NRRD_FIELDS = frozenset(
    "type dimension space sizes encoding endian content min max number kinds labels units centers centerings spacings "
    "thicknesses".split()
) | {"space dimension", "space directions", "space origin", "space units", "measurement frame", "block size",
     "blocksize", "byte skip", "byteskip", "line skip", "lineskip", "old min", "oldmin", "old max", "oldmax",
     "axis mins", "axismins", "axis maxs", "axismaxs", "data file", "datafile", "sample units",
     "sampleunits"}  # fmt: skip
_MISREAD_SPACES = ("right-anterior-superior-time", "rast", "left-anterior-superior-time", "last")
# Units other than mm and s, which ITK and 3D Slicer ignore: they read all lengths as mm, and all times as seconds.
_OTHER_UNITS = {
    "mm": re.compile(r"(nano|micro|centi|deci)?met(er|re)s?|microns?|(n|u|\u00b5|\u03bc|c|d)?m|in(ch(es)?)?", re.I),
    "s": re.compile(r"(milli|micro|nano)(seconds?|secs?)|(m|u|\u00b5|\u03bc|n)s(ec)?s?|min(ute)?s?|h(ou)?rs?|h", re.I),
}
_GZIP = ("gzip", "gz")
_TEXT = ("ascii", "text", "txt", "hex")


class _HeaderError(Exception):
    """A header that does not contain what is expected."""

    def __init__(self, expected: str, got: object):
        super().__init__(f"expected {expected}, got {str(got)[:60]!r}")


def check_text_header(path: str, voxels: bool = True) -> None:
    """Check an NRRD or MetaImage file before ITK reads it.

    ITK also reads VTK, GIPL, MINC, MGH and others, but does not notice damage in their headers.

    Args:
        voxels: also check that the data are complete, by decompressing them.

    Raises:
        InputError: If the header is invalid or does not match the data, or if the file has another format.
    """
    with open(path, "rb") as file:
        head = file.read(_LONGEST_HEADER)
    try:
        if head.startswith(b"NRRD"):
            _check_nrrd(Path(path), head, voxels)
        elif path.lower().endswith(_META_ENDINGS) and re.match(rb"(\xef\xbb\xbf)?\s*[^\0=:\n]+[=:]", head):
            _check_meta(Path(path), head, voxels)
        else:
            raise InputError(f"{path}: expected an image (NIfTI, MHA, NRRD), got {other_content(path)}")
    except _HeaderError as error:
        raise InputError(
            f"{path}: {error}; correct the header, or copy or convert the image again{_and_data(path)}"
        ) from None


def _and_data(path: str) -> str:
    return " together with its data file" if path.lower().endswith((".mhd", ".nhdr")) else ""


def _check_meta(path: Path, head: bytes, voxels: bool) -> None:
    fields, start = _meta_fields(head)
    if fields.get("ObjectType", "Image") != "Image":
        raise _HeaderError("ObjectType = Image", fields["ObjectType"])
    axes = _integer(fields, "NDims", 2, 5)
    sizes = _integers(fields, "DimSize", axes)
    for name, power in _META_NUMBERS.items():
        if name in fields:
            _finite(name, fields[name].split(), axes**power)
    spacing = fields.get("ElementSpacing", fields.get("ElementSize", ""))
    if not all(float(value) > 0 for value in _finite("ElementSpacing", spacing.split(), axes)):
        raise _HeaderError("positive ElementSpacing", spacing)
    _check_unit("DistanceUnits", fields.get("DistanceUnits", ""), "mm")
    flags = {name: _flag(name, fields[name]) for name in _META_FLAGS if name in fields}
    kind = fields.get("ElementType", "").removeprefix("MET_")
    if kind.removesuffix("_ARRAY") not in _META_BYTES:
        raise _HeaderError("a known ElementType, such as MET_SHORT", fields.get("ElementType", "none"))
    channels = _integer(fields, "ElementNumberOfChannels", 1, 1000, "1")
    skip = _integer(fields, "HeaderSize", -1, None, "0")
    needed = math.prod(sizes) * channels * _META_BYTES[kind.removesuffix("_ARRAY")]
    name = fields["ElementDataFile"]
    if name.upper() == "LOCAL":
        parts = [path]
    else:
        parts, start = _data_files(path, name, head[start:], "ElementDataFile"), 0
    if flags.get("CompressedData"):
        _integer(fields, "HeaderSize", 0, 0, "0")
        stored = sum(part.stat().st_size - start for part in parts)
        if parts == [path] or ("CompressedDataSize" in fields and len(parts) == 1):  # optional for a separate data file
            _integer(fields, "CompressedDataSize", stored, stored)
        if voxels:
            _check_decompressed(parts, start, needed)
    elif flags.get("BinaryData", True):
        _check_length(parts, start + max(skip, 0), needed, at_end=skip < 0)


def _meta_fields(head: bytes) -> tuple[dict[str, str], int]:
    """Return the fields, of which ElementDataFile is the last, and the position after them."""
    fields: dict[str, str] = {}
    start = 0
    while "ElementDataFile" not in fields:
        end = head.find(b"\n", start)
        line = head[start : end if end >= 0 else len(head)].decode("latin-1").strip()
        start = end + 1 if end >= 0 else len(head)
        if end >= 0 and not line:
            continue
        match = re.fullmatch("([^=:]+)[=:](.*)", line)  # ITK also writes DICOM attributes, such as 0008|0060 = MR
        name, value = (part.strip() for part in match.groups()) if match else ("", "")
        if not name.isprintable() or not name or name in fields or (end < 0 and name != "ElementDataFile"):
            raise _HeaderError("lines of the form NAME = VALUE, each name once, up to ElementDataFile", line)
        fields[name] = value
    if not fields["ElementDataFile"]:
        raise _HeaderError("the name of the data file", "")
    return fields, start


def _check_nrrd(path: Path, head: bytes, voxels: bool) -> None:
    fields, start = _nrrd_fields(head)
    kind = fields.get("type", "").lower()
    if kind not in _NRRD_BYTES:
        raise _HeaderError("a known type, such as short", fields.get("type", "none"))
    axes = _integer(fields, "dimension", 2, 5)
    sizes = _integers(fields, "sizes", axes)
    _check_nrrd_geometry(fields, axes)
    _check_nrrd_units(fields)
    encoding = fields.get("encoding", "").lower()
    if encoding not in ("raw", *_GZIP, *_TEXT):
        raise _HeaderError("encoding raw, gzip, ascii or hex", fields.get("encoding", "none"))
    needs_endian = "endian" in fields or (_NRRD_BYTES[kind] > 1 and encoding not in _TEXT[:3])
    if needs_endian and fields.get("endian", "").lower() not in ("little", "big"):
        raise _HeaderError("endian little or big", fields.get("endian", "none"))
    byte_skip, line_skip = (_integer(fields, name, low, None, "0") for name, low in (("byteskip", -1), ("lineskip", 0)))
    name, parts = fields.get("datafile"), [path]
    if name is not None:
        parts, start = _data_files(path, name, head[start:], "data file"), 0
    needed = math.prod(sizes) * _NRRD_BYTES[kind]
    if encoding == "raw":
        if not line_skip:
            _check_length(parts, start + max(byte_skip, 0), needed, at_end=byte_skip < 0)
    elif encoding in _TEXT:
        stored = sum(part.stat().st_size for part in parts)
        if math.prod(sizes) > stored:
            raise _HeaderError(f"{math.prod(sizes)} voxels", f"{stored} bytes")
    elif voxels and not line_skip and not byte_skip:
        _check_decompressed(parts, start, needed)


def _nrrd_fields(head: bytes) -> tuple[dict[str, str], int]:
    """Return the fields by their names without spaces in aliases, and the position of the data."""
    magic, _, _ = head.partition(b"\n")
    if not re.fullmatch(rb"NRRD000[1-5]", magic.strip()):
        raise _HeaderError("NRRD0001 to NRRD0005", magic.decode("latin-1"))
    fields: dict[str, str] = {}
    start = len(magic) + 1
    while start < len(head):
        end = head.find(b"\n", start)
        line, start = head[start : end if end >= 0 else None].decode("latin-1").lstrip(), end + 1 or len(head)
        if not line:
            return fields, start
        if line.startswith("#") or ":=" in line:
            continue
        name, colon, value = line.partition(": ")
        name = name.lower()
        alias = name.replace(" ", "")
        name = alias if alias in _NRRD_FIELDS else name
        too_long = len(value) > _LONGEST_VALUE and name != "content"  # ITK crashes, except for free text
        if name not in _NRRD_FIELDS or not colon or name in fields or too_long:
            raise _HeaderError("lines of the form 'field: value' with fields of NRRD, each once", line.rstrip())
        fields[name] = value.strip()
        if name == "datafile" and fields[name].split()[:1] == ["LIST"]:
            return fields, start
    if "datafile" not in fields:
        raise _HeaderError("an empty line between header and voxels", "none")
    return fields, len(head)


def _check_nrrd_geometry(fields: Mapping[str, str], axes: int) -> None:
    vectors = {name: _vectors(name, fields[name]) for name in ("space directions", "space origin") if name in fields}
    directions = vectors.get("space directions")
    spatial = [vector for vector in directions or () if vector is not None]
    if not spatial and "spacings" not in fields:
        raise _HeaderError("voxel sizes in 'space directions'", "none")
    lengths = {len(vector) for one in vectors.values() for vector in one if vector is not None}
    if directions is not None and len(directions) != axes:
        raise _HeaderError(f"{axes} space directions", fields["space directions"])
    if len(lengths) > 1 or (spatial and len(spatial) not in lengths) or len(vectors.get("space origin", [()])) != 1:
        raise _HeaderError(
            "one 'space origin' and as many 'space directions' as axes of space",
            f"{fields.get('space origin')}; {fields.get('space directions')}",
        )
    if "spacings" in fields:
        values = fields["spacings"].split()
        spacings = [_float("spacings", value) for value in values]
        if len(values) != axes or any(s <= 0 or math.isinf(s) for s in spacings) or sum(map(math.isnan, spacings)) > 1:
            raise _HeaderError(f"{axes} positive spacings", fields["spacings"])
    _check_nrrd_kinds(fields, axes, directions or ())


def _check_nrrd_kinds(fields: Mapping[str, str], axes: int, directions: Sequence[list[float] | None]) -> None:
    kinds = fields.get("kinds", "").lower().split()
    if kinds and len(kinds) != axes:
        raise _HeaderError(f"{axes} kinds", fields["kinds"])
    if fields.get("space", "").lower() in _MISREAD_SPACES:
        raise _HeaderError("space left-posterior-superior-time, as ITK reads any 4D space as this one", fields["space"])
    if "time" in kinds[:-1]:
        raise _HeaderError("time as the last axis", fields["kinds"])
    if any(vector is None and kind in ("domain", "space", "time") for vector, kind in zip(directions, kinds)):
        raise _HeaderError(
            "a direction for each axis of space and time, with space: left-posterior-superior-time",
            fields["space directions"],
        )


def _check_nrrd_units(fields: Mapping[str, str]) -> None:
    for name in ("space units", "units"):
        for axis, unit in enumerate(re.findall(r'"([^"]*)"', fields.get(name, ""))):
            _check_unit(name, unit, "mm" if axis < 3 else "s")


def _check_unit(name: str, unit: str, expected: str) -> None:
    text = unit.encode("latin-1").decode(errors="replace").strip()
    if _OTHER_UNITS[expected].fullmatch(text):
        raise _HeaderError(f"'{name}' and numbers in {expected}, as ITK reads all as {expected}", text)


def _vectors(name: str, text: str) -> list[list[float] | None]:
    """Read vectors such as ``(1,0,0) none (0,0,1)``."""
    vectors: list[list[float] | None] = []
    if re.sub(r"\([^()]*\)|none", "", text).strip():
        raise _HeaderError(f"vectors of finite numbers in '{name}'", text)
    for part in re.findall(r"\(([^()]*)\)|none", text):
        vectors.append(_finite(f"'{name}'", part.split(",")) if part else None)
    return vectors


def _expanded(name: str, field: str) -> list[str]:
    """List the files of a pattern such as ``slice%03d.raw 1 20 1``; a name without % is one file."""
    if "%" not in name:
        return [name]
    match = re.fullmatch(r"([^%]*%0?\d?d[^%\s]*) (-?\d{1,6}) (-?\d{1,6})(?: (-?\d{1,6}))?(?: \d)?", name)
    first, last, step = (int(match[n] or 1) for n in (2, 3, 4)) if match else (0, 0, 0)
    numbers = range(first, last + (1 if step > 0 else -1), step) if step else range(0)
    if not match or not 0 < len(numbers) <= _MOST_FILES or min(numbers) < 0:
        raise _HeaderError(f"{field} of the form NAME%03d.raw FIRST LAST STEP", name)
    return [match[1] % number for number in numbers]


def _data_files(path: Path, name: str, rest: bytes, field: str) -> list[Path]:
    """List the data files that ``field`` names, one for each line of ``rest`` after LIST."""
    if name.split()[:1] == ["LIST"]:
        names = [line for line in rest.decode("latin-1").splitlines() if line.strip()]
    else:
        names = _expanded(name, field)
    files = [path.parent / name.strip() for name in names]
    for file in files:
        if "\0" in str(file) or len(file.name) > 255 or not file.is_file():
            raise _HeaderError("an existing data file", file.name)
    if not files:
        raise _HeaderError("the names of data files", "none")
    return files


def _check_length(parts: Sequence[Path], start: int, needed: int, at_end: bool = False) -> None:
    """Check that the files contain ``needed`` bytes of voxels.

    Args:
        start: position of the voxels in each file.
        at_end: the voxels are at the end of the file, after any number of bytes.
    """
    stored = sum(max(part.stat().st_size - start, 0) for part in parts)
    if stored < needed or (stored > needed and not at_end):
        raise _HeaderError(_declared(needed), f"{stored} bytes")


def _check_decompressed(parts: Sequence[Path], start: int, needed: int) -> None:
    """Check that the files decompress to ``needed`` bytes, and their checksums, in little memory."""
    stored = 0
    for part in parts:
        for length in _decompressed_lengths(part, start, needed):
            stored += length
            if stored > needed:
                raise _HeaderError(_declared(needed), "more bytes")
    if stored != needed:
        raise _HeaderError(_declared(needed), f"{stored} bytes")


def _decompressed_lengths(part: Path, start: int, needed: int) -> Iterator[int]:
    """Yield the lengths of the pieces to which a file decompresses. Gzip files may be concatenated."""
    with open(part, "rb") as file:
        file.seek(start)
        reader, rest = _inflater(), b""
        while True:
            if reader.eof:
                rest = reader.unused_data + file.read(len(GZIP_START))
                if not rest.startswith(GZIP_START):
                    return
                reader = _inflater()
            chunk = rest or file.read(_CHUNK)
            if not chunk:
                return
            try:
                yield len(reader.decompress(chunk, _CHUNK))
            except zlib.error as error:
                raise _HeaderError(_declared(needed), error) from None
            rest = reader.unconsumed_tail


def _inflater() -> "zlib._Decompress":
    return zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip or zlib


def _declared(needed: int) -> str:
    return f"{needed} bytes of voxels as declared"


def _flag(name: str, text: str) -> bool:
    if text.lower() not in ("true", "false", "t", "f", "1", "0"):
        raise _HeaderError(f"{name} True or False", text)
    return text.lower() in ("true", "t", "1")


def _integer(fields: Mapping[str, str], name: str, low: int, high: int | None, default: str = "none") -> int:
    text = fields.get(name, default)
    value = int(text) if re.fullmatch(r"-?[0-9]{1,15}", text) else None
    if value is None or value < low or (high is not None and value > high):
        limits = f"from {low}" if high is None else f"from {low} to {high}" if low < high else str(low)
        raise _HeaderError(f"{name} {limits}", text)
    return value


def _integers(fields: Mapping[str, str], name: str, number: int) -> list[int]:
    texts = fields.get(name, "").split()
    if len(texts) != number or not all(re.fullmatch(r"[0-9]{1,9}", text) and int(text) > 0 for text in texts):
        raise _HeaderError(f"{number} positive integers in {name}", fields.get(name, "none"))
    return [int(text) for text in texts]


def _finite(name: str, texts: Sequence[str], number: int | None = None) -> list[float]:
    values = [_float(name, text) for text in texts]
    if (number is not None and len(values) != number) or not all(map(math.isfinite, values)):
        raise _HeaderError(f"{'' if number is None else f'{number} '}finite numbers in {name}", " ".join(texts))
    return values


def _float(name: str, text: str) -> float:
    try:
        return float(text.replace("_", "x"))
    except ValueError:
        raise _HeaderError(f"numbers in {name}", text) from None
