import re
import subprocess
import sys
from pathlib import Path

import pytest

from groupmorph_monai.workflow import memory


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux alone says it in another place")
def test_peak_memory_is_what_the_kernel_says():
    peak = memory.peak_memory_gb()
    kibibytes = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8")).group(1)
    # Between the two readings it may grow, and ru_maxrss remembers a parent's size: a wrong unit is off by 1000.
    assert peak == pytest.approx(int(kibibytes) * 1024 / 1e9, rel=0.5)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_the_pages_of_a_freed_tensor_serve_the_next():
    # In a process of its own: what other tests left in the heap decides where a tensor goes. It runs the file alone, as
    # the package takes seconds to import.
    program = f"""
import resource, runpy, torch
keep_freed_memory = runpy.run_path({memory.__file__!r})["keep_freed_memory"]
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**24)  # 64 MB: 16384 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults())
keep_freed_memory()
faults()  # the heap grows
print(faults())
"""
    before, after = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.split()
    assert int(after) < 0.1 * int(before)
