import nibabel
import numpy as np
import pytest
import torch
from json_files import read_json, write_json

from experiments.__main__ import main as experiment
from experiments.surfaces import compare_overlap, pair_subjects
from groupmorph_monai.apps.command_line import main
from groupmorph_monai.data.reading.datalist import series_items
from groupmorph_monai.errors import InputError
from groupmorph_monai.evaluation import WarpLabelsd
from groupmorph_monai.evaluation.metrics import overlap, warp_labels


def boxes(shift=3):
    """Make two label maps of two boxes, shifted along i by ``shift`` voxels in the second map."""
    labels = torch.zeros(2, 24, 20, 16, dtype=torch.int32)
    for k, start in enumerate((4, 4 + shift)):
        labels[k, start : start + 8, 4:12, 4:12] = 1
        labels[k, start : start + 8, 13:17, 4:12] = 2
    return labels


def test_overlap_and_distance_are_those_of_shifted_boxes():
    measured = overlap(boxes(), torch.eye(4))
    assert measured["dice"] == pytest.approx(5 / 8)
    assert overlap(boxes(0), torch.eye(4)) == {"dice": 1, "surface_distance_mm": 0}
    twice = overlap(boxes(), torch.diag(torch.tensor([2.0, 2, 2, 1])))
    assert twice["dice"] == measured["dice"]
    assert twice["surface_distance_mm"] == pytest.approx(2 * measured["surface_distance_mm"], rel=1e-5)
    assert 0.5 < measured["surface_distance_mm"] < 3


def test_labels_follow_the_fields():
    labels, ddf = boxes(), torch.zeros(2, 3, 24, 20, 16)
    ddf[1, 0] = 3.2  # the nearest voxel is the third
    warped = warp_labels(labels, ddf)
    assert warped.dtype == labels.dtype and torch.equal(warped, labels[:1].expand(2, -1, -1, -1))
    item = WarpLabelsd()({"labels": labels, "pred": {"ddf": ddf}})
    assert torch.equal(item["pred"]["labels"], warped)
    assert WarpLabelsd()({"pred": {"ddf": ddf}}) == {"pred": {"ddf": ddf}}


@pytest.fixture
def subjects(tmp_path):
    for kind in ("images", "labels"):
        (tmp_path / "subjects" / kind).mkdir(parents=True)
    for number in range(12):
        labels = boxes(number % 4)[1].numpy()
        for kind, data in (("images", 100 * labels), ("labels", labels)):
            file = tmp_path / "subjects" / kind / f"subject_{number:02d}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(data.astype(np.int16), np.eye(4)), file)
    return tmp_path / "subjects"


def test_subjects_to_test_on_are_not_trained_on(subjects, tmp_path):
    tested = pair_subjects(subjects, tmp_path / "pairs")
    trained = read_json(tmp_path / "pairs" / "dataset.json")["training"]
    names = [{file for pair in pairs for file in pair["image"]} for pairs in (tested, trained)]
    assert not names[0] & names[1] and len(names[0] | names[1]) == 12
    assert all(pair["image"][0] != pair["image"][1] for pair in tested + trained)
    assert len(series_items(str(tmp_path / "pairs"), "training", [])) == len(trained) == 9 * 8  # every pair once
    assert all(a.replace("images", "labels") == b for pair in tested for a, b in zip(pair["image"], pair["labels"]))
    with pytest.raises(InputError, match="dataset: expected 6 subjects or more"):
        pair_subjects(tmp_path / "pairs", tmp_path / "none")


def test_a_method_that_aligns_the_subjects_overlaps(subjects, tmp_path):
    class Oracle:
        def prepare(self):
            def register(images):
                ddf = torch.zeros(2, 3, *images.shape[1:])
                place = [float((image > 0).nonzero()[:, 0].float().min()) for image in images]
                ddf[1, 0] = place[1] - place[0]
                return ddf, -ddf

            return register

    rows = compare_overlap(pair_subjects(subjects, tmp_path / "pairs"), {"oracle": Oracle()}, lambda line: None)
    assert [row["method"] for row in rows] == ["unregistered", "oracle"]
    before, after = rows
    assert before["each label, Dice"] == before["Dice"] < 0.9  # both boxes move as one
    assert after["each label, Dice"] == after["Dice"] == 1
    assert after["surface distance, mm"] == after["each label, surface distance, mm"] == 0


def test_evaluation_measures_labels_where_there_are_some(subjects, tmp_path):
    pair = pair_subjects(subjects, tmp_path / "pairs")[0]
    write_json(tmp_path / "pairs" / "dataset.json", {"training": [pair]})
    options = ["--dataset", str(tmp_path / "pairs"), "--output", str(tmp_path / "out"), "--overlay", "effort/no_refine"]
    assert main(["evaluate", *options]) == 0
    metrics = read_json(tmp_path / "out" / "metrics.json")["mean"]
    assert 0 < metrics["dice"] <= 1 and metrics["surface_distance_mm"] >= 0


def test_the_experiment_wants_subjects(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        experiment(["surfaces", "--output", str(tmp_path)])
    assert "surfaces: expected --dataset, got none" in capsys.readouterr().err
