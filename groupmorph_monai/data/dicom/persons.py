"""Check whether the scans of one patient ID, which may be that of an anonymiser, are of one person."""

import re
from collections.abc import Sequence

from ...errors import InputError
from .order import Volume
from .plane import Plane


def check_person(volumes: Sequence[Volume]) -> None:
    """Check that the scans are of one person, as far as their headers say.

    Raises:
        InputError: If they state different birth dates or sexes.
    """
    firsts = [plane for plane, *_ in volumes]
    for name, pattern in (("birth date", r"\d"), ("sex", r"^[MF]")):
        stated: dict[str, Plane] = {}
        for plane in firsts:
            text = {"birth date": plane.person.birth_date, "sex": plane.person.sex}[name].strip().upper()
            stated.setdefault("".join(re.findall(pattern, text)), plane)
        stated.pop("", None)
        if len(stated) > 1:
            first, second, *_ = (plane.file.path for plane in stated.values())
            raise InputError(
                f"{first}: expected the scans of one patient, got another {name} in {second}; use the folder of one "
                "patient"
            )


def different_names(volumes: Sequence[Volume]) -> list[str]:
    """Describe different names of the patient, regardless of case and punctuation: one line, or none.

    The names themselves are not repeated, as reports may be shared.
    """
    stated: dict[str, Plane] = {}
    for plane, *_ in volumes:
        alphabetic, *_ = plane.person.name.split("=")  # the same name in other scripts may follow
        stated.setdefault(re.sub(r"[\W_]+", "", alphabetic).upper(), plane)
    stated.pop("", None)
    if len(stated) < 2:
        return []
    first, second, *_ = (plane.file.path for plane in stated.values())
    return [
        f"{second}: the name of the patient differs from that in {first}, although the ID is the same; if the scans "
        "are of two patients, use the folder of one"
    ]
