"""The bundle's metadata agrees with MONAI's schema, the network's output and the package's requirements."""

import configparser
import re

import pytest
import torch
from json_files import read_json, write_json
from monai.bundle import ConfigParser, verify_metadata

TENSOR = {
    "type": "object",
    "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range"],
    "properties": {
        "num_channels": {"type": "integer"},
        "value_range": {"type": "array", "items": {"type": "number"}},
        "channel_def": {"type": "object"},
    },
}
# Requirements of MONAI's meta_schema_20240725 that a bundle may miss; the schema itself is online.
SCHEMA = {
    "type": "object",
    "required": [
        "schema", "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version", "task",
        "description", "authors", "copyright", "network_data_format", "changelog",
    ],
    "properties": {
        "required_packages_version": {"type": "object"},
        "supported_apps": {"type": "object"},
        "network_data_format": {
            "required": ["inputs", "outputs"],
            "additionalProperties": {"type": "object", "additionalProperties": TENSOR},
        },
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def metadata(bundle):
    return read_json(bundle / "configs" / "metadata.json")


def requirements(text):
    return {re.match(r"[\w-]+", line)[0] for line in text.split("\n") if line.strip()}


def test_monai_verifies_it(metadata, tmp_path):
    write_json(tmp_path / "schema.json", SCHEMA)

    def verify(content):
        write_json(tmp_path / "metadata.json", content)
        verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=str(tmp_path / "schema.json"))

    verify(metadata)
    with pytest.raises(ValueError, match=r"\[\] is not of type .object"):
        verify({**metadata, "supported_apps": []})


def test_every_channel_is_named(metadata):
    formats = metadata["network_data_format"]
    for tensor in (formats["inputs"]["image"], formats["outputs"]["pred"]):
        assert [int(name) for name in tensor["channel_def"]] == list(range(tensor["num_channels"]))
        assert len(set(tensor["channel_def"].values())) == tensor["num_channels"]


def test_the_names_are_of_what_the_network_gives(bundle, metadata):
    formats = metadata["network_data_format"]
    timepoints = formats["inputs"]["image"]["num_channels"]
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.yaml"))
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    # Only the last timepoint moves: along the first axis.
    axes = torch.meshgrid(*[torch.linspace(0, 6, 32)] * 3, indexing="ij")
    image = torch.stack([torch.sin(axes[0] + 0.3 * (k == timepoints - 1)) * axes[1].cos() for k in range(timepoints)])
    with torch.no_grad():
        output = network(0.5 + 0.5 * image[None])[0].flatten(1)
    names = list(formats["outputs"]["pred"]["channel_def"].values())
    assert len(output) == len(names)
    mean = output[: len(names) // 2].mean(dim=1).abs()
    assert names[int(mean.argmax())] == f"mean of the velocity along axis 0, timepoint {timepoints - 1}"


def test_it_lists_what_the_package_needs_in_the_tested_versions(bundle, metadata):
    setup = configparser.ConfigParser()
    setup.read(bundle.parent / "setup.cfg")
    needed = requirements(setup["options"]["install_requires"]) - {"torch", "monai", "numpy"}
    assert set(metadata["required_packages_version"]) == needed
    pins = dict(
        re.findall(r"^([\w-]+)==(\S+)$", (bundle.parent / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    )
    listed = metadata["required_packages_version"] | {name: metadata[f"{name}_version"] for name in ("monai", "numpy")}
    assert listed == {name: pins[name] for name in listed}
    assert metadata["pytorch_version"] == pins["torch"]
    assert metadata["version"] in metadata["changelog"]
