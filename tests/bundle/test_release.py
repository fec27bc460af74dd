"""The released bundle, packed by `make bundle` and used by MONAI's programs."""

import json
import os
import shlex
import subprocess
import sysconfig
import venv
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import yaml
from bundle_runs import NARROW, TINY, network_settings
from json_files import read_json
from monai.bundle import load as load_bundle
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, WeightType
from monai.fl.utils.exchange_object import ExchangeObject

from groupmorph_monai.networks import GroupSetVAE

NAME = "groupmorph_dce_registration"


@pytest.fixture(scope="module")
def release(bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("release")
    done = subprocess.run([bundle.parent / ".ci" / "pack_bundle", folder], check=True, capture_output=True, text=True)
    with zipfile.ZipFile(done.stdout.strip()) as archive:
        assert {member.external_attr >> 16 for member in archive.infolist()} == {0o100644}
        archive.extractall(folder)
    return folder / NAME


def test_the_zip_is_laid_out_as_the_zoo_has_it(bundle, release):
    assert [path.name for path in release.parent.glob("*/")] == [NAME]
    wanted = {"LICENSE", "configs/metadata.json", "configs/logging.conf", "docs/README.md", "docs/data_license.txt"}
    wanted |= {"models/model.pt", "configs/inference.json", "configs/train.json", "groupmorph_monai/__init__.py"}
    files = {path.relative_to(release).as_posix() for path in release.rglob("*")}
    assert wanted <= files and not [name for name in files if "__pycache__" in name]
    for name in ("train", "inference"):
        config = read_json(release / "configs" / f"{name}.json")
        assert config == yaml.safe_load((bundle / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))


def test_the_model_card_has_its_header_and_its_pictures(release):
    header, text = (release / "README.md").read_text(encoding="utf-8").split("---\n", 2)[1:]
    assert yaml.safe_load(header)["license"] == "apache-2.0"
    links = [part.split(")")[0].split("#")[0] for part in text.split("](")[1:]]
    assert [link for link in links if link.endswith(".png")]
    assert [link for link in links if link and "://" not in link and not (release / link).is_file()] == []


def test_monai_loads_the_network_with_its_weights(release, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = load_bundle(NAME, bundle_dir=str(release.parent), device="cpu")
    assert isinstance(network, GroupSetVAE) and list(tmp_path.iterdir()) == []
    for name, value in torch.load(release / "models" / "model.pt", weights_only=True).items():
        assert torch.equal(network.state_dict()[name], value), name


def test_a_round_of_federated_learning(release, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {**TINY, **network_settings(NARROW), "bundle_root": str(release), "output_dir": "run"}
    options["learning_rate"] = 1e-3
    whole_weights = {"send_weight_diff": False, "save_dict_key": "network", "config_evaluate_filename": None}
    client = MonaiAlgo(str(release), train_kwargs=options, **whole_weights)
    client.initialize({ExtraItems.CLIENT_NAME: "hospital"})
    own = {name: value + 0 for name, value in client.get_weights().weights.items()}
    start = {name: 0.5 * value for name, value in own.items()}
    client.train(ExchangeObject(weights=start, weight_type=WeightType.WEIGHTS))
    weights = client.get_weights().weights
    client.finalize()
    # It continues from the server's weights, not from its own; Adam's few steps change them little.
    most = 2 * options["iterations_per_epoch"] * options["learning_rate"]
    change, apart = (max(float(np.abs(weights[n] - w[n]).max()) for n in weights) for w in (start, own))
    assert 0 < change <= most < apart


@pytest.fixture(scope="module")
def without_the_package(tmp_path_factory):
    """Make an interpreter with all packages of this one except GroupMorph."""
    folder = tmp_path_factory.mktemp("alone")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    paths = json.dumps([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    site = subprocess.run(
        [python, "-c", "import site; print(site.getsitepackages()[0])"], capture_output=True, text=True
    )
    # A .pth file in a folder that another one names is not read, and by one the package is found in a checkout.
    (Path(site.stdout.strip()) / "base.pth").write_text("\n".join(dict.fromkeys(json.loads(paths))), encoding="utf-8")
    return python


@pytest.mark.slow
def test_the_zip_registers_alone_and_from_elsewhere(release, without_the_package, series, tmp_path):
    command = [without_the_package, "-m", "monai.bundle", "run", "inference", "--bundle_root", release]
    command += ["--config_file", f"['{release}/configs/inference.json','{release}/configs/effort/no_refine.yaml']"]
    command += ["--series", str(series[:2]), "--output_dir", tmp_path / "out", "--initial_alignment", "none"]
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    absent = subprocess.run(
        [without_the_package, "-c", "import groupmorph_monai"], cwd=tmp_path, env=alone, capture_output=True
    )
    done = subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, text=True, timeout=600)
    assert absent.returncode != 0 and done.returncode == 0, done.stderr[-3000:]
    report = read_json(tmp_path / "out" / "report.json")
    metrics = report["metrics"]
    assert report["settings"]["command"] == shlex.join(["python", *map(str, command[1:])])
    assert metrics["nmi_after"] > metrics["nmi_before"] + 0.01
    assert nibabel.load(tmp_path / "out" / "warped.nii.gz").shape[3] == 2


def test_monai_loads_the_network_of_the_zip_alone(release, without_the_package, tmp_path):
    code = (
        "import sys; from monai.bundle import load; print(type(load(*sys.argv[1:2], bundle_dir=sys.argv[2])).__name__)"
    )
    command = [without_the_package, "-c", code, NAME, release.parent]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(release)}, capture_output=True, text=True
    )
    assert done.stdout.split()[-1] == "GroupSetVAE", done.stderr[-3000:]
