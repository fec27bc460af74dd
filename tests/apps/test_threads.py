"""The number of threads follows the CPU affinity of the process and the quota of its control groups."""

import os

import pytest
from control_group_files import write_group

from groupmorph_monai.apps import threads
from groupmorph_monai.apps.arguments import make_parser
from groupmorph_monai.apps.cohort.clusters import Resources
from groupmorph_monai.errors import InputError


def cores(tmp_path, lines):
    (tmp_path / "cgroup").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return threads.available_cores(tmp_path / "cgroup", tmp_path / "fs")


@pytest.fixture(autouse=True)
def host_of_64_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))


@pytest.mark.parametrize(
    "limit, expected",
    [("max 100000", 64), ("200000 100000", 2), ("50000 100000", 1), ("150000 100000", 2), ("9900000 100000", 64)],
)
def test_the_quota_of_version_2(limit, expected, tmp_path):
    write_group(tmp_path / "fs" / "user" / "job", cpu__max=limit)
    assert cores(tmp_path, ["0::/user/job"]) == expected


def test_a_group_around_it_limits_too(tmp_path):
    write_group(tmp_path / "fs" / "user" / "job", cpu__max="max 100000")
    write_group(tmp_path / "fs" / "user", cpu__max="300000 100000")
    write_group(tmp_path / "fs", cpu__max="800000 100000")
    assert cores(tmp_path, ["0::/user/job"]) == 3


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
@pytest.mark.parametrize("quota, expected", [(-1, 64), (250000, 3), (50000, 1)])
def test_the_quota_of_version_1(mount, quota, expected, tmp_path):
    write_group(tmp_path / "fs" / mount / "docker", cpu__cfs_quota_us=quota, cpu__cfs_period_us=100000)
    assert cores(tmp_path, ["5:memory:/other", "4:cpu,cpuacct:/docker"]) == expected


def test_a_container_that_sees_its_own_group_as_the_root(tmp_path):
    write_group(tmp_path / "fs" / "cpu", cpu__cfs_quota_us=200000, cpu__cfs_period_us=100000)
    assert cores(tmp_path, ["4:cpu,cpuacct:/docker/of/the/host"]) == 2


def test_the_affinity_without_control_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5})
    assert threads.available_cores(tmp_path / "none", tmp_path) == 2
    write_group(tmp_path / "fs", cpu__max="800000 100000")
    assert cores(tmp_path, ["0::/"]) == 2


@pytest.mark.parametrize("number, before, expected", [(3, "5", "3"), (None, "5", "5"), (None, None, "64")])
def test_a_number_given_comes_before_the_environment_and_that_before_the_cores(number, before, expected, monkeypatch):
    set_threads = []
    monkeypatch.setattr("torch.set_num_threads", set_threads.append)
    monkeypatch.setattr(threads, "_stop_spinning", lambda: None)
    monkeypatch.setattr(threads, "_own_choice", "")
    monkeypatch.setattr(threads, "available_cores", lambda: 64)
    for variable in ("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
        monkeypatch.delenv(variable, raising=False)
        if before:
            monkeypatch.setenv(variable, before)
    threads.limit_threads(number)
    assert os.environ["OMP_NUM_THREADS"] == os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] == expected
    assert set_threads == [int(expected)]


@pytest.mark.parametrize("value", ["", "0", "1.5", "-1", "1025", "many", "\uff11"])
def test_a_number_in_the_environment_that_openmp_does_not_read(value, monkeypatch):
    monkeypatch.setattr("torch.set_num_threads", lambda number: pytest.fail(f"{number} threads"))
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    with pytest.raises(InputError, match="expected a whole number from 1 to 1024"):
        threads.limit_threads()


@pytest.mark.parametrize("options, before, expected", [((), "1", 1), ((), None, 32), (("--threads", "3"), "1", 3)])
def test_series_of_a_cohort_follow_the_environment_too(options, before, expected, monkeypatch):
    monkeypatch.setattr("torch.set_num_threads", lambda number: None)
    monkeypatch.setattr(threads, "_stop_spinning", lambda: None)
    monkeypatch.setattr(threads, "_own_choice", "")
    monkeypatch.setattr("groupmorph_monai.apps.cohort.clusters.available_cores", lambda: 64)
    for variable in ("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
        monkeypatch.setenv(variable, before or "")  # restored at the end
        if not before:
            monkeypatch.delenv(variable)
    words = ["cohort", "m.tsv", "--output", "out", "--workers", "2", "--device", "cpu", *options]
    args = make_parser().parse_args(words)
    threads.limit_threads(args.threads)
    assert Resources(args, memory_gb=1, series=100).threads == expected


def test_a_study_has_no_more_workers_than_series():
    args = make_parser().parse_args(["cohort", "m.tsv", "--output", "out", "--workers", "10000", "--device", "cpu"])
    assert Resources(args, memory_gb=1, series=3).workers == 3
