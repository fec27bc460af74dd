"""Attributes of one frame of a DICOM file, wherever the file stores them."""

import math
from functools import cache, cached_property
from typing import Any, overload

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag

_PHILIPS_FRAME = (0x2005, 0x140F)


@cache
def _tag(name: str | tuple[int, int]) -> BaseTag:
    return Tag(name)


def to_float(value: Any) -> float:
    """Convert a number, also with the decimal comma that some programs write in spite of the standard."""
    return float(value.replace(",", ".") if isinstance(value, str) else value)


class Attributes:
    """Attributes of a frame: those of its own and shared groups, the data set, and Philips' private classic header.

    Args:
        dataset: content of the file.
        frame: index of the frame; 0 in a single-frame file.
        own: attributes of this frame alone, outside functional groups.
    """

    def __init__(self, dataset: Dataset, frame: int, own: Dataset | None = None):
        groups = [shared[0] for shared in [dataset.get("SharedFunctionalGroupsSequence")] if shared]
        if frames := dataset.get("PerFrameFunctionalGroupsSequence"):
            groups.insert(0, frames[frame])
        sequences = [e.value for group in groups for e in group if e.VR == "SQ" and not e.tag.is_private]
        private = [group[_PHILIPS_FRAME].value for group in groups if _PHILIPS_FRAME in group]
        sources = ([] if own is None else [own]) + [item for items in sequences for item in items] + [dataset]
        sources += [item for items in private for item in items]
        # `in` of a data set parses the name every time, which dominates the time for a large study.
        self.sources = [(source, source.keys()) for source in sources]

    def get(self, *names: str | tuple[int, int], default: object = None) -> Any:
        """Return the value of the first of these attributes that has one."""
        for tag in map(_tag, names):
            for source, tags in self.sources:
                value = source[tag].value if tag in tags else None
                if value is not None and value != "":
                    return value
        return default

    def values(self, *names: str | tuple[int, int]) -> list[Any]:
        """Return the values of the first of these attributes that has any.

        Private text is bytes in files that declare no types if an anonymiser removed its block's creator.
        """
        value = self.get(*names, default=[])
        if isinstance(value, bytes):
            return value.decode("ascii", errors="replace").split("\\")
        return list(value) if isinstance(value, MultiValue | list) else [value]

    def numbers(self, *names: str | tuple[int, int]) -> list[float]:
        """Return the values of the first of these attributes that has any; none unless all are finite numbers."""
        try:
            numbers = [to_float(value) for value in self.values(*names)]
        except (TypeError, ValueError):
            return []
        return numbers if all(map(math.isfinite, numbers)) else []

    @overload
    def number(self, *names: str | tuple[int, int], default: float) -> float: ...

    @overload
    def number(self, *names: str | tuple[int, int]) -> float | None: ...

    def number(self, *names: str | tuple[int, int], default: float | None = None) -> float | None:
        return next(iter(self.numbers(*names)), default)

    def texts(self, *names: str | tuple[int, int]) -> tuple[str, ...]:
        return tuple(str(value) for value in self.values(*names))

    def text(self, *names: str | tuple[int, int]) -> str:
        """Return the value of the first of these attributes that has one, also a text that contains backslashes, which
        separate several values; empty if there is none."""
        return "\\".join(self.texts(*names))

    def private(self, tag: tuple[int, int], creator: str) -> float | None:
        """Read a private number from the block that ``creator`` reserves, which archives may move.

        Args:
            tag: its tag where the block is the first one, 10.
        """
        located = self._in_block(tag, creator)
        return None if located is None else self.number(located)

    def private_text(self, tag: tuple[int, int], creator: str) -> str:
        """Read a private text in the same way; empty if there is none."""
        located = self._in_block(tag, creator)
        return "" if located is None else "\\".join(text.strip(" \0") for text in self.texts(located))

    def _in_block(self, tag: tuple[int, int], creator: str) -> tuple[int, int] | None:
        group, element = tag
        block = self._blocks.get((group, creator))
        return None if block is None else (group, block << 8 | element & 0xFF)

    @cached_property
    def _blocks(self) -> dict[tuple[int, str], int]:
        """Blocks of private attributes, by group and creator."""
        blocks: dict[tuple[int, str], int] = {}
        for source, tags in self.sources:
            for tag in tags:
                group, element = tag >> 16, tag & 0xFFFF
                if group % 2 and 0x10 <= element <= 0xFF:
                    blocks.setdefault((group, str(source[tag].value).strip()), element)
        return blocks
