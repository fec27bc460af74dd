from groupmorph_monai.apps.suites.kinetics import tabulate_residuals


def test_residuals_are_tabulated_for_each_failure():
    results = [
        ("x", {"kinetic_residual_ratio": ratio, "folding_percent": folds}) for ratio, folds in ((0.5, 9), (3, 0))
    ]
    results += [(None, {"kinetic_residual_ratio": None, "folding_percent": 0})]
    rows = {row["planted failure"]: row for row in tabulate_residuals(results)}
    assert (rows["x"]["series"], rows["x"]["with a fit"], rows["none"]["with a fit"]) == (2, 2, 0)
    assert [rows["x"][name] for name in ("least", "median", "greatest")] == [0.5, 1.75, 3]
    assert rows["x"]["FAIL by this check"] == 1 and rows["x"]["LOOK or FAIL by the other checks"] == 1
