"""What MONAI Label's server runs: ``monailabel start_server --app FOLDER``, where FOLDER is a copy of this one."""

import shutil
import tempfile
from pathlib import Path

from fastapi import HTTPException
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from groupmorph_monai import __version__
from groupmorph_monai.apps.monai_label.requests import OPTIONS, register, register_arguments, series_of
from groupmorph_monai.errors import InputError

MODEL = "groupmorph"


class Registration(InferTask):
    """Register a series; the answer is its aligned volumes, a 4D NIfTI, and the numbers of the report.

    Clients that show segmentations alone do not list it: what it returns is no label map.
    """

    def __init__(self):
        description = "Align all volumes of a series of one patient: a 4D image, or the images that `images` names"
        super().__init__(InferType.OTHERS, labels=[], dimension=4, description=description, config=dict(OPTIONS))

    def is_valid(self) -> bool:
        return True

    def __call__(self, request: dict) -> tuple[str, dict]:
        with tempfile.TemporaryDirectory(prefix="groupmorph-") as folder:
            output = Path(folder) / "out"
            result = register(request["series"], request["arguments"], output)
            answer = Path(tempfile.mkdtemp(prefix="groupmorph-")) / "warped.nii.gz"  # the server sends and removes it
            shutil.move(output / answer.name, answer)
        return str(answer), result


class GroupMorphApp(MONAILabelApp):
    """Group-wise registration beside the datastore's images."""

    def __init__(self, app_dir: str, studies: str, conf: dict):
        description = "Group-wise registration of a series of scans of one patient"
        super().__init__(app_dir, studies, conf, name="GroupMorph", description=description, version=__version__)

    def init_infers(self) -> dict[str, InferTask]:
        return {MODEL: Registration()}

    def infer(self, request: dict, datastore=None) -> dict:
        """Register the series that a request asks for. A mistake in it is answered by status 422 and its line,
        a fault of the program by 500 and where its log is."""
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
    def _mask(store, request: dict, mask: str) -> str:
        """File of a mask: the tag of a label of the image, such as "final", or the name of another image."""
        image = (request.get("images") or [request["image"]])[0]
        file = store.get_label_uri(image, mask) if mask in store.get_labels_by_image_id(image) else ""
        file = file or store.get_image_uri(mask)
        if not file:
            raise InputError(f"mask: expected the tag of a label of {image}, or the name of an image, got {mask!r}")
        return file
