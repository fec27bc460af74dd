"""An interrupted table of metrics is resumed."""

import os

import pytest
from ignite.engine import Engine, Events
from json_files import read_json

from groupmorph_monai.evaluation import MetricsTable


class Evaluation:
    """Evaluation that reads metrics from text files, and stops before the series named ``stop``."""

    def __init__(self, folder, output, settings=(), stop=None):
        self.measured, self.stop = [], stop
        self.table = MetricsTable(str(output), settings)
        items = [{"name": p.name, "image": str(p)} for p in sorted(folder.iterdir())]
        self.left = self.table.remaining(items)
        self.engine = Engine(self._step)
        self.table.attach(self.engine)

    def _step(self, engine, item):
        if item["name"] == self.stop:
            raise KeyboardInterrupt
        self.measured.append(item["name"])
        with open(item["image"], encoding="utf-8") as file:
            return [{"metrics": {"loss": float(file.read()), "dice": float("nan")}}]

    def run(self):
        self.engine.run(self.left, max_epochs=1)
        return self.measured


@pytest.fixture
def series(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name, value in zip("abc", (1.0, 2.0, 6.0)):
        (folder / name).write_text(str(value), encoding="utf-8")
    return folder


def stopped(series, output, before="c"):
    with pytest.raises(KeyboardInterrupt):
        Evaluation(series, output, stop=before).run()


def table(output):
    content = read_json(output / "metrics.json")
    assert sorted(os.listdir(output)) == ["metrics.csv", "metrics.json"]
    assert [row.split(",")[0] for row in (output / "metrics.csv").read_text(encoding="utf-8").split()] == [
        "series",
        *"abc",
        "mean",
    ]
    return [row["loss"] for row in content["series"]], content["mean"]["loss"]


def test_a_stopped_evaluation_goes_on_with_the_series_that_are_left(series, tmp_path, capsys):
    output = tmp_path / "out"
    stopped(series, output)
    assert not (output / "metrics.csv").exists()
    assert Evaluation(series, output).run() == ["c"]
    assert table(output) == ([1, 2, 6], 3)
    assert "mean" in capsys.readouterr().out
    # If all series are finished, a new run measures them again.
    assert Evaluation(series, output).run() == ["a", "b", "c"]


def test_a_series_or_a_setting_that_has_changed_is_measured_again(series, tmp_path):
    output = tmp_path / "out"
    stopped(series, output)
    (series / "b").write_text("3.0", encoding="utf-8")
    os.utime(series / "b", (1, 1))
    assert Evaluation(series, output).run() == ["b", "c"]
    assert table(output) == ([1, 3, 6], pytest.approx(10 / 3))
    stopped(series, output)
    assert Evaluation(series, output, settings=[{"spacing_mm": 2.0}]).run() == ["a", "b", "c"]


def test_a_row_that_is_broken_is_measured_again(series, tmp_path):
    output = tmp_path / "out"
    stopped(series, output)
    row = next((output / ".measured").iterdir())
    row.write_text(row.read_text(encoding="utf-8")[:20])
    assert len(Evaluation(series, output).run()) == 2


def test_a_table_that_was_stopped_before_it_was_written_is_written(series, tmp_path):
    output = tmp_path / "out"
    evaluation = Evaluation(series, output)
    with pytest.raises(KeyboardInterrupt):
        evaluation.engine.add_event_handler(Events.EPOCH_COMPLETED, lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        evaluation.run()
    assert Evaluation(series, output).run() == ["c"]
    assert table(output) == ([1, 2, 6], 3)
