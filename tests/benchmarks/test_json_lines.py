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


def test_a_line_that_a_killed_run_left_incomplete_is_discarded(tmp_path):
    lines = JsonLines(tmp_path / "results.jsonl")
    assert lines.read() == []
    lines.append({"case": ["a", 2], "result": 0.5})
    lines.append({"case": ["b", 3], "result": 1.5})
    lines.file.write_text(lines.file.read_text(encoding="utf-8")[:-4], encoding="utf-8")
    assert lines.read() == [{"case": ["a", 2], "result": 0.5}]
    lines.append({"case": ["c", 4], "result": 2.5})
    assert [line["case"] for line in lines.read()] == [["a", 2], ["c", 4]]
