import pytest
from control_group_files import write_group

from groupmorph_monai.workflow.free_memory import available_memory_gb


@pytest.mark.parametrize(
    "line, mount, files, expected_gb",
    [
        ("0::/job", ".", {"memory__max": 6 * 10**9, "memory__current": 2 * 10**9}, 4.5),
        ("0::/job", ".", {"memory__max": "max", "memory__current": 2 * 10**9}, 8.192),
        ("4:memory:/job", "memory", {"memory__limit_in_bytes": 3 * 10**9, "memory__usage_in_bytes": 10**9}, 2.5),
        ("4:memory:/job", "memory", {"memory__limit_in_bytes": 2**63 - 4096, "memory__usage_in_bytes": 10**9}, 8.192),
        ("4:memory:/job", "memory", {"memory__limit_in_bytes": 10**9, "memory__usage_in_bytes": 2 * 10**9}, 0),
    ],
)
def test_free_memory_is_what_the_machine_and_its_control_groups_leave(line, mount, files, expected_gb, tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 9999999 kB\nMemAvailable:    8000000 kB\n", encoding="utf-8")
    (tmp_path / "cgroup").write_text(f"{line}\n", encoding="utf-8")
    # Half a GB of the used memory is file cache.
    cached = {"memory__stat": "cache 1\ninactive_file 500000000\ntotal_inactive_file 500000000"}
    write_group(tmp_path / "fs" / mount / "job", **files, **cached)
    actual = available_memory_gb(tmp_path / "meminfo", tmp_path / "cgroup", tmp_path / "fs")
    assert actual == pytest.approx(expected_gb)


def test_nothing_is_known_of_a_system_that_does_not_tell(tmp_path):
    assert available_memory_gb(tmp_path / "a", tmp_path / "b", tmp_path / "c") == float("inf")
