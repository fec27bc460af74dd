import json

from groupmorph_monai.benchmarks.json_lines import JsonLines


def test_lines_of_an_earlier_run_come_first_and_each_is_written_at_once(tmp_path):
    file = tmp_path / "results.jsonl"
    assert JsonLines(file).read() == []
    JsonLines(file).append({"case": ("näme", 1), "value": 0.5})
    later = JsonLines(file)
    later.append({"case": ["b", 2], "value": None})
    assert later.read() == [{"case": ["näme", 1], "value": 0.5}, {"case": ["b", 2], "value": None}]
    assert [json.loads(line)["value"] for line in file.read_text(encoding="utf-8").splitlines()] == [0.5, None]
