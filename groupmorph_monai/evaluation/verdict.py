"""PASS, LOOK or FAIL: whether a registration can be used, judged from its quality measures.

Each check is one number with two thresholds, their source, and the sentence to print. The worst check decides the
verdict. PASS means that no known sign of failure was detected; it is no proof of success.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..workflow.affine_alignment import CLEAR_CONFIDENCE

LEVELS = ("PASS", "LOOK", "FAIL")
LEAST_FALL = 0.005  # smallest fall in normalised mutual information that counts; interpolation alone causes less


@dataclass(frozen=True)
class Check:
    """A number that separates good registrations from failed ones.

    Args:
        name: name of the number, ending with its unit.
        meaning: description for the report.
        sentence: printed when a threshold is crossed; ``{value}``, ``{limit}`` and ``{scan}`` are filled in.
        look, fail: thresholds for LOOK and FAIL; None to never give that verdict.
        source: origin of the thresholds.
        low_is_bad: whether values below the thresholds are bad, instead of values above.
    """

    name: str
    meaning: str
    sentence: str
    look: float | None
    fail: float | None
    source: str
    low_is_bad: bool = False

    def level(self, value: float) -> int:
        """Return the index in `LEVELS` of the level of a value."""
        limits = [limit for limit in (self.look, self.fail) if limit is not None]
        beyond = [limit for limit in limits if (value < limit if self.low_is_bad else value > limit)]
        return LEVELS.index("FAIL" if self.fail in beyond else "LOOK") if beyond else 0

    def reason(self, value: float, scan: str = "") -> str:
        """Fill in the sentence for a ``value`` beyond a threshold, of a timepoint called ``scan``."""
        limit = self.fail if self.level(value) == LEVELS.index("FAIL") else self.look
        return _sentence(self.sentence.format(value=f"{value:.3g}", limit=f"{limit:g}", scan=scan))


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"


_CALIBRATED = "Calibrated on phantoms with planted failures (bundle/docs/verdict.md)."

CHECKS = (
    Check(
        "overlap_percent",
        "share of the common space inside each timepoint's field of view, in percent",
        "{scan} covers {value} % of the common space, expected {limit} % or more.",
        look=60,
        fail=10,
        source="Signal curves exist only where all fields of view overlap. " + _CALIBRATED,
        low_is_bad=True,
    ),
    Check(
        "compared_percent",
        "structure of the series that can be compared in each timepoint, in percent",
        "{value} % of the structure of the series can be compared in {scan}, expected {limit} % or more.",
        look=30,
        fail=1,
        source="75 % or more in real series, 24 % for a slab beside a whole head; below 1 % there is nothing to align.",
        low_is_bad=True,
    ),
    Check(
        "initial_confidence",
        "confidence of the initial affine alignment, 0 to 1",
        "The initial alignment of {scan} has a confidence of {value}, expected {limit} or more.",
        look=CLEAR_CONFIDENCE,
        fail=None,
        source=f"Up to 0.22 for scans that do not match, {CLEAR_CONFIDENCE} to 0.9 for scans that do (GroupAffine).",
        low_is_bad=True,
    ),
    Check(
        "hidden_structure_percent",
        "structure of each timepoint that is too faint beside the brightest tenth of its voxels, in percent",
        "{value} % of the structure of {scan} is too faint beside its brightest voxels to be compared, expected at "
        "most {limit} %: is there an implant, or a hot spot? Clip its intensities in the scans.",
        look=50,
        fail=None,
        source="At most 25 % without very bright objects, 59 % or more beside implants of 1.5 to 3 % of the voxels.",
    ),
    Check(
        "agreement_percent",
        "local structure of each timepoint that the other timepoints explain, independent of contrast, in percent",
        "The other scans explain {value} % of the structure of {scan}, expected {limit} % or more.",
        look=60,
        fail=30,
        source=_CALIBRATED,
        low_is_bad=True,
    ),
    Check(
        "relative_agreement",
        "agreement relative to the median agreement of the other timepoints",
        "The agreement of {scan} is {value} times that of the other scans, expected {limit} or more: another patient, "
        "body part or orientation?",
        look=0.8,
        fail=0.6,
        source=_CALIBRATED,
        low_is_bad=True,
    ),
    Check(
        "agreement_gain_percent",
        "change of the agreement by registration, in percentage points",
        "Registration changed the agreement of {scan} by {value} percentage points, expected {limit} or more: is the "
        "series better without it?",
        look=-3,
        fail=-10,
        source="Registration should not make scans less similar; interpolation costs up to 1 %. " + _CALIBRATED,
        low_is_bad=True,
    ),
    Check(
        "nmi_gain",
        "change of the normalised mutual information over all pairs, on the coarse grid of the checks, -1 to 1",
        "The scans are less similar than before: normalised mutual information changed by {value}.",
        look=-LEAST_FALL,
        fail=-0.05,
        source="Registration should not make scans less similar. " + _CALIBRATED,
        low_is_bad=True,
    ),
    Check(
        "bending_mm",
        "95th percentile of the residual motion after an affine fit, mm",
        "{scan}: non-affine motion reaches {value} mm, expected at most {limit} mm.",
        look=30,
        fail=None,
        source="Organ motion was tested up to 30 mm (groupmorph benchmark breathing).",
    ),
    Check(
        "folding_percent",
        "voxels at which the deformation folds, in percent",
        "The deformation folds at {value} % of the voxels, expected at most {limit} %.",
        look=0.1,
        fail=1.0,
        source="A diffeomorphism has no folds; Dalca et al. (2019) report less than one such voxel per scan.",
    ),
    Check(
        "implausible_volume_percent",
        "voxels whose volume is less than halved or more than doubled, in percent",
        "{scan}: volumes change by more than a factor of 2 at {value} % of the voxels, expected at most {limit} %.",
        look=1.0,
        fail=5.0,
        source="Soft tissue is nearly incompressible; air in lungs is not. " + _CALIBRATED,
    ),
    Check(
        "region_volume_change_percent",
        "volume change of enhancing regions relative to their surroundings, in percent",
        "{scan}: the volume of enhancing regions changes by {value} %, expected at most {limit} %: enhancement "
        "mistaken for motion?",
        look=5.0,
        fail=25.0,
        source=_CALIBRATED,
    ),
    Check(
        "inverse_consistency_mm",
        "mean inverse consistency error, mm",
        "The inverse consistency error is {value} mm, expected at most {limit} mm.",
        look=0.2,
        fail=2.0,
        source="0.2 mm is less than a fifth of a typical voxel. " + _CALIBRATED,
    ),
    Check(
        "curve_roughness_ratio",
        "mean second difference of the signal curves, after over before",
        "Registration made the signal curves {value} times as rough, expected at most {limit} times.",
        look=1.1,
        fail=2.0,
        source="Motion makes curves rough, so removing it should make them smoother. " + _CALIBRATED,
    ),
    Check(
        "kinetic_residual_ratio",
        "median residual of the kinetic fit in enhancing tissue, after over before",
        "Registration multiplied the residual of the kinetic fit in enhancing tissue by {value}, expected at most "
        "{limit}.",
        look=1.1,
        fail=2.0,
        source="Motion increases the residual, which Buonaccorsi et al. (2007, MRM 58:1010) minimise for registration. "
        + _CALIBRATED,
    ),
    Check(
        "uncertainty_mm",
        "median standard deviation of the displacement, mm",
        "{scan}: the standard deviation of the displacement is {value} mm, expected at most {limit} mm.",
        look=3.0,
        fail=None,
        source="Two standard deviations are half the size of a 12 mm lesion.",
    ),
)


def judge(
    values: Mapping[str, float | Sequence[float] | None],
    checks: Sequence[Check] = CHECKS,
    warnings: Sequence[str] = (),
    names: Sequence[str] = (),
) -> dict[str, Any]:
    """Compare quality measures with their thresholds.

    Args:
        values: one number, or one per timepoint, by the name of the check. Checks without a value, or with NaN, are
            omitted.
        warnings: sentences, each of them a reason to look.
        names: of the timepoints, for the reasons.

    Returns:
        ``verdict``, the worst level of `LEVELS`; ``reasons``, sentences, worst first; ``checks``, with value,
        thresholds, level, meaning and source by name.
    """
    rows, reasons = {}, []
    for check in checks:
        value = values.get(check.name)
        numbers = value if isinstance(value, Sequence) else [value]
        finite = {k: float(v) for k, v in enumerate(numbers) if v is not None and not math.isnan(v)}
        if not finite:
            continue
        levels = {k: check.level(v) for k, v in finite.items()}
        worst = max(levels.values())
        rows[check.name] = {
            "value": value,
            "level": LEVELS[worst],
            "look": check.look,
            "fail": check.fail,
            "meaning": check.meaning,
            "source": check.source,
        }
        scans = [f"timepoint {k} ({names[k]})" if names else f"timepoint {k}" for k in range(len(numbers))]
        reasons += [(level, check.reason(finite[k], scans[k])) for k, level in levels.items() if level]
    reasons += [(LEVELS.index("LOOK"), _sentence(warning)) for warning in warnings]
    reasons.sort(key=lambda reason: -reason[0])
    return {
        "verdict": LEVELS[max((level for level, _ in reasons), default=0)],
        "reasons": [f"{LEVELS[level]}: {sentence}" for level, sentence in reasons],
        "checks": rows,
    }
