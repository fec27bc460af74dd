"""PASS, LOOK or FAIL: what the numbers of a registration say of whether it can be used.

Each check is one number with two thresholds, the reason for them, and the sentence that a person reads. The verdict is
that of the worst check. A PASS is no proof: it says that none of the known signs of a failure was found.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["CHECKS", "Check", "judge"]

LEVELS = ("PASS", "LOOK", "FAIL")


@dataclass(frozen=True)
class Check:
    """A number that tells good registrations from failed ones.

    Args:
        name: of the number; its unit stands at the end.
        meaning: what it is, for the report.
        sentence: printed where a threshold is passed; ``{value}``, ``{limit}`` and ``{scan}`` are filled in.
        look, fail: thresholds from which the verdict is LOOK or FAIL; None where it never is.
        source: where the thresholds come from.
        low_is_bad: whether values below the thresholds are bad, in place of those above.
    """

    name: str
    meaning: str
    sentence: str
    look: float | None
    fail: float | None
    source: str
    low_is_bad: bool = False

    def level(self, value: float) -> int:
        """Index of `LEVELS`."""
        limits = [limit for limit in (self.look, self.fail) if limit is not None and self._beyond(value, limit)]
        return LEVELS.index("FAIL" if self.fail in limits else "LOOK") if limits else 0

    def _beyond(self, value: float, limit: float) -> bool:
        return value < limit if self.low_is_bad else value > limit

    def reason(self, value: float, scan: int | None) -> str:
        """The sentence about a ``value`` beyond a threshold, and about which ``scan`` where there is one for each."""
        limit = self.fail if self.level(value) == LEVELS.index("FAIL") else self.look
        return self.sentence.format(value=f"{value:.3g}", limit=f"{limit:g}", scan=f"Timepoint {scan}")


CHECKS = (
    Check(
        "initial_confidence",
        "confidence that the whole scans were brought together, for each timepoint",
        "{scan} was not brought together with the others with confidence: {value}, expected {limit} or more.",
        look=0.25,
        fail=None,
        source="Up to 0.22 for scans that do not match, 0.4 to 0.9 for those that do (GroupAffine).",
        low_is_bad=True,
    ),
    Check(
        "folding_percent",
        "voxels at which the deformation folds, in percent",
        "The deformation folds at {value} % of the voxels, expected at most {limit} %.",
        look=0.1,
        fail=1.0,
        source="Diffeomorphic methods fold below 0.1 % of the voxels; 1 % is what unconstrained ones reach.",
    ),
)


def judge(values: Mapping[str, float | Sequence[float]], checks: Sequence[Check] = CHECKS) -> dict[str, object]:
    """Compare numbers with their thresholds.

    Args:
        values: by the checks' names: one number, or one for each timepoint. A check without a value, or whose value is
            NaN, is left out.
    Returns: ``verdict``, the worst level of `LEVELS`; ``reasons``, sentences, the worst first; ``checks``: of each
        number its value, thresholds, level, meaning and source.
    """
    rows, reasons = {}, []
    for check in checks:
        value = values.get(check.name)
        numbers = value if isinstance(value, Sequence) else [value]
        known = {k: float(v) for k, v in enumerate(numbers) if v is not None and not math.isnan(v)}
        if not known:
            continue
        levels = {k: check.level(v) for k, v in known.items()}
        worst = max(levels.values())
        rows[check.name] = {
            "value": value,
            "level": LEVELS[worst],
            "look": check.look,
            "fail": check.fail,
            "meaning": check.meaning,
            "source": check.source,
        }
        scans = isinstance(value, Sequence)
        reasons += [(level, check.reason(known[k], k if scans else None)) for k, level in levels.items() if level]
    reasons.sort(key=lambda reason: -reason[0])
    return {
        "verdict": LEVELS[max((level for level, _ in reasons), default=0)],
        "reasons": [f"{LEVELS[level]}: {sentence}" for level, sentence in reasons],
        "checks": rows,
    }
