"""A device for tests, "elsewhere": its tensors hold CPU data but cannot be combined with ordinary tensors, like those
of a GPU, and all copies and synchronisations are counted."""

from traceback import extract_stack

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

if torch.cuda.is_available():
    pytest.skip("PyTorch's autograd serves one device beside the CPU, here a GPU", allow_module_level=True)


class _Module:
    """Interface of a device module of PyTorch, ``torch.elsewhere``."""

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None: ...

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16]


_setup_privateuseone_for_python_backend("elsewhere", backend_module=_Module)
ELSEWHERE = torch.device("elsewhere:0")

aten = torch.ops.aten
# Operators that read values, for which a GPU must finish all queued work.
_WAITS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten._unique2.default,
}
_INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
_COPIES = {aten._to_copy.default, aten.copy_.default, aten._copy_from.default}


class Elsewhere(Tensor):
    """A tensor of the stand-in device, with its values in ``values_here``, a CPU tensor."""

    @staticmethod
    def __new__(cls, values: Tensor) -> "Elsewhere":
        result = Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=ELSEWHERE,
            requires_grad=False,
        )
        result.values_here = values
        return result

    def tolist(self) -> list | float:
        return self.cpu().tolist()

    def __repr__(self) -> str:
        return f"Elsewhere({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return Traffic().__torch_dispatch__(func, types, args, kwargs)  # counted only inside a `with`


def _on_device(x: object) -> bool:
    return isinstance(x, Elsewhere)


def _here(x: object) -> object:
    return x.values_here if isinstance(x, Elsewhere) else x


def _to_device(x: object) -> object:
    return Elsewhere(x) if isinstance(x, Tensor) and not isinstance(x, Elsewhere) else x


class _FromData(TorchFunctionMode):
    """Make tensors of Python's numbers on the CPU and copy them, which PyTorch does below its dispatcher."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        return func(*args, **kwargs)


class Traffic(TorchDispatchMode):
    """Within it, tensors may be made and moved elsewhere; ``events`` tells of every copy and wait, with its place in
    the package: ``("copy to" | "copy from" | "wait", operator, file:line)``."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[str, str, str]] = []
        self._from_data = _FromData()

    def __enter__(self) -> "Traffic":
        self._from_data.__enter__()
        return super().__enter__()

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        self._from_data.__exit__(*error)

    def _tell(self, kind: str, func) -> None:
        frames = [f for f in extract_stack() if "groupmorph_monai" in f.filename]
        place = f"{frames[-1].filename.rsplit('/', 1)[1]}:{frames[-1].lineno}" if frames else "?"
        self.events.append((kind, str(func), place))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        flat = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        on_device, on_cpu = [x for x in flat if _on_device(x)], [x for x in flat if not _on_device(x)]
        target = kwargs.get("device")
        to_device = target is not None and torch.device(target).type == ELSEWHERE.type
        if func in _COPIES:
            return self._copied(func, args, kwargs, to_device, target)
        if not on_device and not to_device:
            return func(*args, **kwargs)
        if func in _INDEXED:
            indices = [i for i in args[1] if i is not None]
            if any(i.dtype == torch.bool for i in indices):
                self._tell("wait", func)
            elif any(not _on_device(i) for i in indices):
                self._tell("copy to", func)
        elif any(x.dim() for x in on_cpu):
            raise RuntimeError(
                f"{func}: expected all tensors on one device, got {[(str(x.device), tuple(x.shape)) for x in flat]}"
            )
        if func in _WAITS:
            self._tell("wait", func)
        if "device" in kwargs:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        result = func(*tree_map(_here, args), **tree_map(_here, kwargs))
        return return_and_correct_aliasing(func, args, kwargs, tree_map(_to_device, result))

    def _copied(self, func, args, kwargs, to_device, target):
        if func is aten.copy_.default:
            into, source = args[:2]
            if _on_device(into) != _on_device(source) and not (source.dim() == 0 and _on_device(into)):
                self._tell("copy to" if _on_device(into) else "copy from", func)
            func(_here(into), _here(source))
            return into
        source = args[0]
        stays = _on_device(source) if target is None else to_device
        if _on_device(source) != stays:
            self._tell("copy to" if stays else "copy from", func)
        result = func(_here(source), **{**kwargs, "device": torch.device("cpu")} if target is not None else kwargs)
        # This counts as a copy, although both are CPU tensors here.
        return _to_device(result) if stays else result
