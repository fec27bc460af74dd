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


_CALIBRATED = "Calibrated on phantoms with planted failures (docs/verdict.md)."

CHECKS = (
    Check(
        "overlap_percent",
        "share of the common space that each timepoint has seen",
        "{scan} has seen {value} % of the common space, expected {limit} % or more.",
        look=60,
        fail=10,
        source="Curves are measured where all scans have seen the tissue. " + _CALIBRATED,
        low_is_bad=True,
    ),
    Check(
        "initial_confidence",
        "confidence that the whole scans were brought together",
        "{scan} was brought together with the others with a confidence of {value}, expected {limit} or more.",
        look=0.4,
        fail=None,
        source="Up to 0.22 for scans that do not match, 0.4 to 0.9 for those that do (GroupAffine).",
        low_is_bad=True,
    ),
    Check(
        "agreement_percent",
        "local structure of each timepoint that the others explain, whatever the contrast, in percent",
        "The other scans explain {value} % of the structure of {scan}, expected {limit} % or more.",
        look=60,
        fail=30,
        source=_CALIBRATED,
        low_is_bad=True,
    ),
    Check(
        "relative_agreement",
        "the same over the median of the other timepoints",
        "{scan} agrees with the others {value} times as well as they do, expected {limit} or more: another patient, "
        "body part or orientation?",
        look=0.8,
        fail=0.6,
        source=_CALIBRATED,
        low_is_bad=True,
    ),
    Check(
        "agreement_gain_percent",
        "what registration adds to the agreement, in percent",
        "Registration changed the agreement of {scan} by {value} %, expected {limit} or more: better without it?",
        look=-3,
        fail=-10,
        source="A registration is not to make scans less alike; interpolation takes up to 1 %. " + _CALIBRATED,
        low_is_bad=True,
    ),
    Check(
        "nmi_gain",
        "what registration adds to the normalised mutual information of all pairs, 0 to 1",
        "The scans are less alike than before: normalised mutual information changed by {value}.",
        look=-0.005,
        fail=-0.05,
        source="A registration is not to make scans less alike. " + _CALIBRATED,
        low_is_bad=True,
    ),
    Check(
        "bending_mm",
        "motion beyond an affine map, 95th percentile, mm",
        "{scan} moves by {value} mm beyond an affine map, expected at most {limit} mm.",
        look=30,
        fail=None,
        source="Organs that move 30 mm are the farthest that was tested (groupmorph benchmark breathing).",
    ),
    Check(
        "folding_percent",
        "voxels at which the deformation folds, in percent",
        "The deformation folds at {value} % of the voxels, expected at most {limit} %.",
        look=0.1,
        fail=1.0,
        source="A diffeomorphism folds nowhere; Dalca et al. (2019) find less than one such voxel per scan.",
    ),
    Check(
        "implausible_volume_percent",
        "voxels whose volume shrinks below half or grows beyond twice, in percent",
        "{scan}: volumes change by more than a factor of 2 at {value} % of the voxels, expected at most {limit} %.",
        look=1.0,
        fail=5.0,
        source="Soft tissue is nearly incompressible; air in lungs is not. " + _CALIBRATED,
    ),
    Check(
        "region_volume_change_percent",
        "change of the volume of enhancing regions against their surroundings, in percent",
        "{scan}: enhancing regions change their volume by {value} %, expected at most {limit} %: contrast taken for "
        "motion?",
        look=5.0,
        fail=25.0,
        source=_CALIBRATED,
    ),
    Check(
        "inverse_consistency_mm",
        "mean distance by which forward and back misses the start, mm",
        "Forward and back misses the start by {value} mm, expected at most {limit} mm.",
        look=0.2,
        fail=2.0,
        source="A fifth of a millimetre is less than a fifth of a usual voxel. " + _CALIBRATED,
    ),
    Check(
        "curve_roughness_ratio",
        "second differences of the signal curves, after over before",
        "Registration made the signal curves {value} times as rough, expected at most {limit} times.",
        look=1.1,
        fail=2.0,
        source="Motion makes curves rough, so its removal makes them smoother. " + _CALIBRATED,
    ),
    Check(
        "kinetic_residual_ratio",
        "median residual of the kinetic fit in enhancing tissue, after over before",
        "Registration made the curves of enhancing tissue fit a kinetic model {value} times as badly, expected at most "
        "{limit} times.",
        look=1.1,
        fail=2.0,
        source="Motion takes curves away from the model, whose residual drives the registration of Buonaccorsi et al. "
        "(2007, MRM 58:1010). " + _CALIBRATED,
    ),
    Check(
        "uncertainty_mm",
        "median standard deviation of the displacement, mm",
        "{scan}: the displacement is uncertain by {value} mm, expected at most {limit} mm.",
        look=3.0,
        fail=None,
        source="Twice that is half of a 12 mm lesion.",
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
