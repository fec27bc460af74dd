"""Translate requests to the server into calls of `groupmorph register`."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import InputError
from ..configs import overlay_names
from ..suggestions import suggestion

# Options shown by clients: a list of choices, default first, or a default value.
OPTIONS: dict[str, object] = {
    "reference": "mean",
    "effort": ["normal", "fast", "best", "none"],
    "initial": ["affine", "rigid", "none"],
    "spacing_mm": "auto",
    "mask": "",
    "overlay": [],
    "images": [],
}
# Keys that MONAI Label's server and clients add to a request.
_SERVER_KEYS = {
    *("model", "image", "description", "device", "client_id", "session", "session_id", "save_label", "label_tag"),
    *("timeout", "logging", "label", "result_extension", "result_dtype", "result_compress", "user"),
}
_ENDINGS = (None, "", ".nii.gz")


def register_arguments(request: Mapping[str, Any]) -> list[str]:
    """Translate a request, except its mask, into options of `groupmorph register`.

    Values come from the network: each becomes one word ``--name=value`` that the command checks, and overlays must be
    among those that the bundle ships.

    Raises:
        InputError: If an option is unknown, an overlay is not shipped, or the result format is not NIfTI.
    """
    for name in request:
        if name not in OPTIONS and name not in _SERVER_KEYS:
            cure = suggestion(name, OPTIONS, f"the options are {', '.join(OPTIONS)}")
            raise InputError(f"params: expected the name of an option, got {name!r}; {cure}")
    for name in ("image", "mask"):
        if not isinstance(request.get(name) or "", (str, Path)):
            raise InputError(f"{name}: expected a name, got {request[name]!r:.60}; pass it as text")
    if request.get("result_extension") not in _ENDINGS:
        raise InputError(
            f"result_extension: expected .nii.gz, as the result is a 4D image, got "
            f"{request['result_extension']!r}; omit it"
        )
    options = {name: request.get(name) for name in ("reference", "initial", "spacing_mm", "device")}
    if options["spacing_mm"] == "auto":  # the command's default
        options["spacing_mm"] = None
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if value is not None]
    effort = request.get("effort") or "normal"
    arguments.append("--no-refine" if effort == "none" else f"--effort={effort}")
    overlays = request.get("overlay") or []
    for name in overlays if isinstance(overlays, (list, tuple)) else [overlays]:
        if name not in overlay_names():
            raise InputError(f"overlay: expected one of {', '.join(overlay_names())}, got {name!r}")
        arguments.append(f"--overlay={name}")
    return arguments


def series_of(request: Mapping[str, Any], image_file: Callable[[str], str]) -> list[str]:
    """List the files of the series: the datastore images named in ``images``, or else ``image``.

    Args:
        image_file: returns the file of an image by its name in the datastore, or "" if there is none.

    Raises:
        InputError: If the request names no image, or an image that is not in the datastore.
    """
    names = request.get("images") or []
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise InputError(f"images: expected a list of names, got {names!r}")
    if not names:
        if not request.get("image"):
            raise InputError("image: expected the name of an image, got none; pass image, or images")
        return [str(request["image"])]
    files = [image_file(name) for name in names]
    for name, file in zip(names, files):
        if not file:
            raise InputError(f"images: expected names of images in the datastore, got {name!r}; add it first")
    return files


def register(series: Sequence[str], arguments: Sequence[str], output: Path) -> dict[str, object]:
    """Run `groupmorph register` in a separate process, so that the server's process stays unchanged.

    Args:
        arguments: options returned by `register_arguments`.
        output: folder for the results.

    Returns:
        Verdict, metrics, warnings and the confidence of the initial alignment, from the report.

    Raises:
        InputError: If the command reports invalid input; with its message.
        RuntimeError: If the command ends with an internal error.
    """
    command = [sys.executable, "-m", "groupmorph_monai.apps", "register", "--quiet", *arguments]
    if broken := [word for word in (*arguments, *series) if "\0" in word]:
        raise InputError(f"params: expected text, got {broken[0]!r:.60} with a null character; remove it")
    done = subprocess.run(
        [*command, f"--output={output}", "--", *series], capture_output=True, encoding="utf-8", errors="replace"
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("groupmorph")] or [done.stderr.strip()]
        kind = InputError if done.returncode == 2 else RuntimeError
        raise kind(lines[0].removeprefix("groupmorph: "))
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    return {
        name: report[name]
        for name in ("verdict", "metrics", "warnings", "initial_alignment", "series", "seconds", "versions")
    }
