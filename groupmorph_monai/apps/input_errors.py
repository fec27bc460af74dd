"""Recognise errors due to invalid input, which end a command with one line and exit code 2 instead of a traceback."""

import errno
import os
import re

from ..errors import InputError

_NO_GPU_MEMORY = re.compile(r"\b(CUDA|HIP|MPS|XPU)\b.*out of memory|STATUS_ALLOC_FAILED|CUFFT_ALLOC_FAILED")
_NO_MEMORY = re.compile(r"can't allocate memory|out of memory|Unable to allocate", re.IGNORECASE)

# MONAI's messages about mistakes in config files.
_CONFIG_ERRORS = {
    r"the referring item `(@.*)` is not defined": "expected a name that they define, got {}; check its spelling",
    r"detected circular references '(.*)'": "expected values without circular references, got one to {}; omit it",
    r"Cannot locate class or function path: '(.*)'": "expected a class or function, got {}; check its name",
    r"(.*\(\) (?:got an unexpected keyword|missing \d+ required).*)": "{}; change the arguments of the component",
}

# File system errors that the user can fix by changing the path or its permissions.
_UNUSABLE = {errno.EACCES, errno.EDQUOT, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG,
             errno.ENOSPC, errno.ENOTDIR, errno.EPERM, errno.EROFS}  # fmt: skip

# Errors of a broken disk, or of a network drive that does not answer. Windows lacks some.
_UNREACHABLE = {
    getattr(errno, name)
    for name in ("EIO", "EREMOTEIO", "ESTALE", "ETIMEDOUT", "EHOSTDOWN", "ENOTCONN")
    if hasattr(errno, name)
}
_NO_SPACE = {errno.EDQUOT, errno.EFBIG, errno.ENOSPC}
_TOO_MANY_FILES = {errno.EMFILE, errno.ENFILE}


def find_input_error(error: BaseException | None) -> InputError | None:
    """Find the InputError in the chain of causes of ``error``, as MONAI wraps exceptions; None if there is none.

    Incompatible weights, missing or unusable files and lack of memory or open files are converted to an InputError.
    """
    causes = chain_of_causes(error)
    if any(isinstance(cause, OSError) and cause.errno in _TOO_MANY_FILES for cause in causes):
        return InputError("too many open files; raise 'ulimit -n'")
    for cause in causes:
        if isinstance(cause, InputError):
            return cause
        if message := _explain_memory(cause) or _explain_libraries(cause) or _explain_files(cause):
            return InputError(message)
    return None


def _explain_memory(error: BaseException) -> str:
    if _NO_GPU_MEMORY.search(str(error)):
        return (
            "GPU memory: expected a series that fits into it, got one that does not; use --device cpu, a larger "
            "--spacing-mm, fewer scans, or windows for the network, say --set window_size_voxels=[128,128,128]; to "
            "train, use a smaller patch_size_voxels"
        )
    if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
        return (
            "memory: expected a series that fits into memory, got one that does not; use --set scans_at_once=1, a "
            "larger --spacing-mm, fewer scans or a smaller part of them, or raise the limit of the process "
            "('ulimit -v'); to train, use a smaller patch_size_voxels"
        )
    if "can't start new thread" in str(error):
        return "threads: the system starts no more; use --threads 1, or raise 'ulimit -u' or 'ulimit -v'"
    return ""


def _explain_libraries(error: BaseException) -> str:
    if "Failed to initialize cpuinfo" in str(error):
        return "/proc: expected information on the processor, which PyTorch needs, got none; mount it"
    if mismatch := re.match(r"Error\(s\) in loading state_dict for (\w+)", str(error)):
        return (
            f"weights: expected weights of a {mismatch[1]} with these settings, got incompatible ones; use --weights "
            "from a training with the same overlays"
        )
    if isinstance(error, ImportError) and "failed to map segment" in str(error):
        return "memory: not enough address space to load the libraries; raise 'ulimit -v'"
    return ""


def _explain_files(error: BaseException) -> str:
    if not isinstance(error, OSError):
        return ""
    missing = isinstance(error, FileNotFoundError)
    name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
    if missing and "usable temporary directory" in str(error):
        return "temporary files: expected a folder that can be written to, got none; set TMPDIR to one"
    if missing and name:
        return f"{name}: expected a file, found none; check the path"
    if not name and error.errno in _NO_SPACE:
        return f"disk: could not write ({error.strerror}); free some space, or raise 'ulimit -f'"
    if error.errno in _UNREACHABLE:
        return (
            f"{name or 'disk'}: could not read or write ({error.strerror}); check the disk or the network "
            "drive, and repeat the command"
        )
    if name and error.errno in _UNUSABLE:
        return (
            f"{name}: expected a path that can be used, got {error.strerror}; choose another, or change its permissions"
        )
    return ""


def find_config_error(error: BaseException | None) -> InputError | None:
    """Convert an error of MONAI about references, names or arguments in config files; None if there is none."""
    for cause in chain_of_causes(error):
        for pattern, message in _CONFIG_ERRORS.items():
            if match := re.match(pattern, str(cause)):
                return InputError(f"configs: {message.format(match[1])}")
    return None


def chain_of_causes(error: BaseException | None) -> list[BaseException]:
    """List an error and its direct and indirect causes, each once, as the chain may contain a cycle."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain
