"""Every setting is declared once with its valid values, and `--set` accepts only these."""

import pytest
import yaml

from groupmorph_monai.apps import configs
from groupmorph_monai.apps.configs import config_files, overlay_names, overlays_table, read_configs
from groupmorph_monai.apps.setting_values import check_settings, parse_settings, settings_table
from groupmorph_monai.apps.settings import SETTINGS
from groupmorph_monai.errors import InputError

# Entries that have an option of their own, describe components, or are no literals.
OF_THE_CONFIG = {
    "bundle_root", "series", "mask", "region", "output_dir", "model", "model_weights", "weights", "device",
    "dataset_dir", "donor", "network", "transformation", "inference", "evaluate", "training", "training_prior",
    "training_inferer", "command", "overlays", "epoch_length", "other_rank", "donor_images", "kl_weight_schedule",
    "inferer#refinement", "cost", "cost_by_headers", "registering", "training_phantoms", "validation_phantoms",
}  # fmt: skip


def literals(content):
    """Names and values at the top of a config that a user may change."""
    for name, value in content.items():
        parts = isinstance(value, dict) or (isinstance(value, list) and not all(type(v) in (int, float) for v in value))
        if not parts and name not in OF_THE_CONFIG and "#" not in name:
            yield name, value


@pytest.mark.parametrize("source", ["inference", "train", "evaluate", *overlay_names()])
def test_settings_of_the_configs_are_declared_and_valid(source):
    overlays = [source] if "/" in source else []
    content = read_configs(config_files("train" if overlays else source, overlays)[-1:])
    for name, value in literals(content):
        assert name in SETTINGS, name
        if not (isinstance(value, str) and value[0] in "@$"):
            assert SETTINGS[name].accepts(value), (name, value)


def test_every_declaration_is_of_some_config():
    names = set()
    for source in ("inference", "train", "evaluate", *overlay_names()):
        files = config_files("train", [source]) if "/" in source else config_files(source, ())
        names |= set(read_configs(files))
    assert {name.split("#")[0] for name in SETTINGS} <= names


REFUSED = """noise=0 noise=.nan noise=.inf noise=abc noise=1e400 noise=-1 noise=true noise=[1] noise= noise=@lambda_u
    passes=0 passes=1.5 passes=two std_draws=2.5 std_draws=-3 std_draws=true write_jacobian=maybe write_jacobian=1
    outside=nowhere outside=[zero] reference=-1 reference=1.0 spacing_mm=0 spacing_mm=-1 spacing_mm=[1,2]
    spacing_mm=1e-6 spacing_mm=[1 window_size_voxels=[8,8] window_size_voxels=[0,0,0] window_radii_voxels=[]
    window_radii_voxels=2 window_radii_voxels=[-1] window_overlap=1 percentile_lower=200 refinement_iterations=3
    refinement_levels_voxels=[0] independent_share=0 lambda_c=-5 lambda_c=.nan intensity_least=abc
    noise=!!python/object/apply:os.getcwd[] noise=!!timestamp noise=!!float max_velocity_voxels=-5""".split()


@pytest.mark.parametrize("text", REFUSED)
def test_a_value_of_another_kind_is_refused_by_name(text):
    name = text.partition("=")[0]
    with pytest.raises(InputError, match=rf"--set {name}: expected a|--set {name}: expected (true|zero|auto|affine)"):
        parse_settings([text], "inference", config_files("inference", ()))


@pytest.mark.parametrize(
    "text, value",
    [("noise=1e-3", 1e-3), ("spacing_mm=auto", "auto"), ("spacing_mm=[1,1,2.5]", [1, 1, 2.5]), ("reference=null", None),
     ("write_jacobian=true", True), ("series_description=*dyn*", "*dyn*"), ("series_description=%dyn", "%dyn"),
     ("series_description=[dD]yn*", "[dD]yn*"), ("window_radii_voxels=[1, 2]", [1, 2])],
)  # fmt: skip
def test_a_value_of_its_kind_is_read(text, value):
    assert parse_settings([text], "inference", config_files("inference", ())) == {text.partition("=")[0]: value}


@pytest.mark.parametrize(
    "name", ["lambda_x", "network", "imports", "series", "weights", "inferer#passes", "", "run_id"]
)
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(InputError, match="--set: expected a setting of inference.yaml"):
        parse_settings([f"{name}=3"], "inference", config_files("inference", ()))
    with pytest.raises(InputError, match="did you mean lambda_[uvbc]"):
        parse_settings(["lambda_x=1"], "inference", config_files("inference", ()))


def test_a_value_of_an_overlay_that_is_not_declared_is_refused_as_such(tmp_path):
    overlay = tmp_path / "laplace.yaml"
    overlay.write_text("laplace_noise: 0.1\n", encoding="utf-8")
    with pytest.raises(InputError, match="got 'laplace_noise'; it has no entry in apps/settings.py"):
        parse_settings(["laplace_noise=1"], "inference", [*config_files("inference", ()), str(overlay)])


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("inferer#refinement", "it is a component, which only a config file of 'python -m monai.bundle run' replaces"),
        ("likelihood", "it is a component, which only a config file of 'python -m monai.bundle run' replaces"),
        ("learning_rate", "it is a setting of train.yaml; omit it"),
        ("nmi_kind", "it is a setting of --overlay likelihoods/group_nmi or models/groupmorph or models/voxelmorph"),
    ],
)
def test_a_name_of_something_else_is_refused_with_its_place(name, cure):
    with pytest.raises(InputError, match=f"got '{name}'; {cure}"):
        parse_settings([f"{name}=3"], "inference", config_files("inference", ()))


def test_settings_of_an_overlay_are_taken_with_the_overlay():
    files = config_files("inference", ["likelihoods/group_nmi"])
    assert parse_settings(["nmi_bins=16"], "inference", files) == {"nmi_bins": 16}


@pytest.mark.parametrize(
    "values, names",
    [({"percentile_lower": 99.0}, "percentile_lower"), ({"percentile_upper": 1}, "percentile_lower"),
     ({"refinement_levels_voxels": [4, 2]}, "refinement_iterations"), ({"refinement_iterations": [1]}, "iterations"),
     ({"refinement_levels_voxels": [1, 2, 4, 8, 16]}, "coarse to fine"), ({"lambda_c": 0.0}, "lambda_c"),
     ({"timepoints_least": 5, "timepoints_most": "@passes"}, "timepoints_least"),
     ({"batch_size": 2, "timepoints_least": 2, "timepoints_most": 3}, "batch_size")],
)  # fmt: skip
def test_settings_that_contradict_each_other_are_refused(values, names):
    content = read_configs(config_files("inference", ()))
    check_settings(content)
    with pytest.raises(InputError, match=names):
        check_settings({**content, **values})


def test_the_table_has_a_line_for_each_with_its_default():
    lines = settings_table()
    assert len(lines) == len(SETTINGS)
    (line,) = [line for line in lines if line.startswith("noise ")]
    assert "a number from 0.0001 to 10" in line and "0.02 (inference), 0.01 (train)" in line
    (line,) = [line for line in lines if line.startswith("spacing_mm ")]
    assert line.split()[1] == "mm" and yaml.safe_load(line.split("default: ")[1].split(" (")[0]) == "auto"
    units = {line.split()[0]: line.split()[1] for line in lines}
    assert all(" # " in line and not line.endswith("# ") for line in lines)  # each says what it is for
    assert units["kinetics_t10_s"] == "s" and units["kinetics_flip_angle_deg"] == "degrees" and units["passes"] == "-"


def test_every_overlay_says_in_one_line_what_it_does():
    lines = overlays_table()
    names = [line.split()[0] for line in lines]
    assert names == overlay_names() and "data/lung_ct" in names
    starts = {len(line) - len(line.split(maxsplit=1)[1]) for line in lines}
    assert len(starts) == 1  # one column, so none is empty
    assert all(line.endswith((".", ":")) and len(line) < 160 for line in lines), lines


def test_a_package_without_its_bundle(monkeypatch, tmp_path):
    monkeypatch.setattr(configs, "__file__", str(tmp_path / "gm.zip" / "groupmorph_monai" / "apps" / "configs.py"))
    with pytest.raises(InputError, match=r"gm\.zip: expected the bundle's config files.*unpack the archive"):
        configs.bundle_root()
