import csv

import pytest

from groupmorph_monai.benchmarks.tables import three_digits, write_table


@pytest.mark.parametrize(
    "value, text",
    [(0.082449, "0.0824"), (262144.0, "262000"), (262144, "262144"), (1e-5, "1e-05"), (None, "-"), ("a, b", "a, b")],
)
def test_numbers_have_three_significant_digits_and_counts_all(value, text):
    assert three_digits(value) == text


def test_the_table_is_the_same_in_both_files(tmp_path):
    rows = [{"method": "a", "seconds": 1.5}, {"method": "b", "mean error, voxels": 0.25, "seconds": 3.0}]
    markdown = write_table(rows, tmp_path, "peers").read_text(encoding="utf-8").splitlines()
    assert markdown[0] == "| method | seconds | mean error, voxels |"
    assert markdown[2:] == ["| a | 1.5 | - |", "| b | 3 | 0.25 |"]
    with open(tmp_path / "peers.csv", encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file))[1] == {"method": "b", "seconds": "3.0", "mean error, voxels": "0.25"}
    assert {path.name for path in tmp_path.iterdir()} == {"peers.csv", "peers.md"}
