from groupmorph_monai.apps.suites.methods import bundle_method
from groupmorph_monai.benchmarks.full_size import full_size


def test_a_series_of_full_size_is_registered_from_its_own_grid(in_this_process):
    (row,) = full_size({"fast": bundle_method(None, "effort/fast")}, (54, 48, 42), 3)
    assert row["method"] == "fast" and row["before, mm"] > 1 and row["after, mm"] < 0.4 * row["before, mm"]
    assert row["peak memory, GB"] > 0.05
