"""MONAI Label app, run by ``monailabel start_server --app FOLDER``, where FOLDER is a copy of this folder."""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import HTTPException
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from groupmorph_monai import __version__
from groupmorph_monai.apps.monai_label.requests import OPTIONS, register, register_arguments, series_of
from groupmorph_monai.errors import InputError

if TYPE_CHECKING:
    from monailabel.interfaces.datastore import Datastore

MODEL = "groupmorph"


class RegistrationTask(InferTask):
    """Register a series and return the aligned volumes as a 4D NIfTI with the numbers of the report.

    Clients that only handle segmentations do not list this task, as its result is not a label map.
    """

    def __init__(self) -> None:
        description = "Align all volumes of a series of one patient: a 4D image, or the images listed in `images`"
        super().__init__(InferType.OTHERS, labels=[], dimension=4, description=description, config=dict(OPTIONS))

    def is_valid(self) -> bool:
        return True

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, object]]:
        with tempfile.TemporaryDirectory(prefix="groupmorph-") as folder:
            output = Path(folder) / "out"
            result = register(request["series"], request["arguments"], output)
            answer = Path(tempfile.mkdtemp(prefix="groupmorph-")) / "warped.nii.gz"  # the server sends and removes it
            shutil.move(output / answer.name, answer)
        return str(answer), result


class GroupMorphApp(MONAILabelApp):
    """Group-wise registration of images in the datastore."""

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]):
        description = "Group-wise registration of a series of scans of one patient"
        super().__init__(app_dir, studies, conf, name="GroupMorph", description=description, version=__version__)

    def init_infers(self) -> dict[str, InferTask]:
        return {MODEL: RegistrationTask()}

    def infer(self, request: dict[str, Any], datastore: "Datastore | None" = None) -> dict[str, Any]:
        """Register the series of a request. Invalid requests are answered with status 422 and a one-line message,
        internal errors with status 500 and the path of the log."""
        store = datastore or self.datastore()
        try:
            arguments = register_arguments(request)
            series = series_of(request, store.get_image_uri)
            if mask := request.get("mask"):
                arguments.append(f"--mask={self._mask(store, request, mask)}")
            if not request.get("images"):
                series = [store.get_image_uri(series[0]) or series[0]]
            return super().infer({**request, "series": series, "arguments": arguments}, datastore)
        except InputError as error:
            raise HTTPException(status_code=422, detail=str(error)) from error
        except RuntimeError as error:
            raise HTTPException(status_code=500, detail=str(error)) from error

    @staticmethod
    def _mask(store: "Datastore", request: dict[str, Any], mask: str) -> str:
        """Locate the file of a mask, given by the tag of a label of the image, such as "final", or by an image name."""
        image = (request.get("images") or [request["image"]])[0]
        file = store.get_label_uri(image, mask) if mask in store.get_labels_by_image_id(image) else ""
        file = file or store.get_image_uri(mask)
        if not file:
            raise InputError(f"mask: expected a label tag of {image} or an image name, got {mask!r}; add it first")
        return file
