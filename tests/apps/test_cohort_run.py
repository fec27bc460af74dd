"""A study on real workers gives the same results if some of the workers are killed."""

import re

import nibabel
import numpy as np
import pytest
from json_files import read_json

from groupmorph_monai.apps.arguments import make_parser
from groupmorph_monai.apps.cohort.clusters import Resources, open_cluster
from groupmorph_monai.data import make_phantom

pytest.importorskip("psutil")
pytest.importorskip("distributed")
from worker_runs import (  # noqa: E402 - needs psutil
    PATIENCE_S,
    below,
    kill_a_worker_and_the_command,
    kill_with_its_servers,
    start,
    wait_for,
)

pytestmark = pytest.mark.slow
NUMBER, BROKEN = 20, ("p03", "p16")
OPTIONS = ("--no-refine", "--initial", "none", "--threads", "1")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Write small series, two of them broken, whose order by name differs from their order by size."""
    folder, lines = tmp_path_factory.mktemp("study"), ["name\tscans\treference"]
    for n in range(NUMBER):
        name = f"p{n:02d}"
        (folder / name).mkdir()
        phantom = make_phantom(n % 3, size=(18, 16, 14), timepoints=2, max_motion_voxels=2, landmarks=2)
        for k, volume in enumerate(phantom["image"].numpy()):
            noise = np.random.default_rng([n, k]).normal(0, 3, volume.shape)
            image = nibabel.Nifti1Image((volume + noise).astype("float32"), phantom["affine"].numpy())
            nibabel.save(image, folder / name / f"t{k}.nii.gz")
        if name in BROKEN:
            scan = folder / name / "t1.nii.gz"
            scan.write_bytes(scan.read_bytes()[:1500])
        lines.append(f"{name}\t{name}\t{n % 2 or ''}")
    (folder / "manifest.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "manifest.tsv"


def cohort(manifest, output, *options):
    words = ("groupmorph_monai.apps", "cohort", str(manifest), "--output", str(output), *OPTIONS, *options)
    return start(f"{output}.log", *words)


def finished(output):
    return sorted(path.name for path in (output / "series").glob("*"))


def fields(output):
    return {
        file.relative_to(output): np.asarray(nibabel.load(file).dataobj)
        for file in sorted((output / "series").rglob("*.nii.gz"))
    }


RUN = ("seconds", "memory_gb", "peak_memory_gb", "ended")


def contents(output):
    """Read the files of a study by name, without times and memory, which differ between any two runs."""
    files = [path for path in sorted(output.rglob("*")) if path.is_file() and path.suffix not in (".log", ".html")]
    return {path.relative_to(output): content(path) for path in files if path.name != "log.txt"}


def content(path):
    if path.suffix == ".json":
        return {name: value for name, value in read_json(path).items() if name not in RUN}
    if path.suffix == ".tsv":
        table = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
        return [[row[n] for n, name in enumerate(table[0]) if name not in RUN] for row in table]
    return path.read_bytes()


def assert_equal(one, other, name):
    """Compare numbers up to rounding errors, as sums depend on the alignment of arrays in memory."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), name
        for key, value in one.items():
            assert_equal(value, other[key], f"{name}: {key}")
    elif isinstance(one, list):
        assert len(one) == len(other), name
        for a, b in zip(one, other):
            assert_equal(a, b, name)
    else:
        assert one == (pytest.approx(other, rel=1e-9, abs=1e-9) if isinstance(one, float) else other), name


async def no_jobs(cluster):
    pass


@pytest.mark.parametrize("command", [("cohort", "m.tsv"), ("evaluate", "--phantoms")])
@pytest.mark.parametrize(
    "queue, wanted",
    [("slurm", ["--cpus-per-task=3", "--mem=5G"]), ("pbs", ["ncpus=3:mem=4769MB"]), ("sge", [])],
)
def test_a_job_of_a_queue_holds_one_series(command, queue, wanted, tmp_path, monkeypatch):
    pytest.importorskip("dask_jobqueue")
    words = [*command, "--output", str(tmp_path), "--jobqueue", queue, "--threads", "3"]
    args = make_parser().parse_args(words)
    monkeypatch.setattr("distributed.SpecCluster._correct_state_internal", no_jobs)
    with open_cluster(args, Resources(args, memory_gb=5, series=9)) as cluster:
        script = cluster.job_script()
    for part in (*wanted, str(tmp_path / "jobs")):
        assert part in script
    # The last value of a repeated option counts.
    assert re.findall(r"--nthreads (\d+)", script)[-1] == "1" and re.findall(r"--memory-limit (\S+)", script)[-1] == "0"


@pytest.fixture(scope="module")
def without_faults(manifest, tmp_path_factory):
    """Run the study as two shards, one after the other, without Dask."""
    output = tmp_path_factory.mktemp("shards") / "out"
    for shard in ("1/2", "2/2"):
        assert cohort(manifest, output, "--shard", shard).wait(timeout=PATIENCE_S) == 3
    return output


def test_shards_make_one_table(without_faults):
    rows = [line.split("\t") for line in (without_faults / "cohort.tsv").read_text(encoding="utf-8").splitlines()]
    states = {row[0]: row[1] for row in rows[1:]}
    assert states == {f"p{n:02d}": "failed" if f"p{n:02d}" in BROKEN else "finished" for n in range(NUMBER)}
    for name in BROKEN:
        status = read_json(without_faults / "failed" / name / "status.json")
        assert "t1.nii.gz: expected a complete image" in status["error"] and status["attempt"] == 2
        assert status["error"] in (without_faults / "failed" / name / "log.txt").read_text(encoding="utf-8")
    assert not (without_faults / ".work").exists()


def test_a_study_killed_at_several_moments_ends_as_one_without_faults(manifest, without_faults, tmp_path):
    output = tmp_path / "out"
    for number in (0, 1, 6, 11):  # the first kill may come before a series has started
        process = cohort(manifest, output, "--shard", "1/1")
        wait_for(lambda number=number: len(finished(output)) >= number, process, output)
        kill_with_its_servers(process)
    assert cohort(manifest, output, "--shard", "1/1").wait(timeout=PATIENCE_S) == 3
    one, other = contents(without_faults), contents(output)
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert_equal(value, other[name], name)
    assert not (output / ".work").exists()


def test_killed_workers_and_schedulers_change_nothing(manifest, without_faults, tmp_path):
    output = tmp_path / "out"
    # On a local cluster, a worker is killed, then the command, whose process contains the scheduler.
    process = cohort(manifest, output, "--workers", "2")
    kill_a_worker_and_the_command(process, output, finished, 3, 7)
    before = {name: (output / "series" / name / "status.json").stat().st_mtime_ns for name in finished(output)}
    assert 7 <= len(before) < NUMBER - len(BROKEN)

    # The study resumes on an external scheduler and its workers, one of which is killed and not restarted.
    file = tmp_path / "scheduler.json"
    dask = [
        start(tmp_path / "dask.log", "distributed.cli.dask_scheduler", "--port", "0", "--scheduler-file", str(file))
    ]
    wait_for(file.exists, dask[0], tmp_path / "dask")
    words = ("distributed.cli.dask_worker", "--scheduler-file", str(file), "--nthreads", "1", "--no-dashboard")
    dask += [start(tmp_path / "dask.log", *words) for _ in range(2)]
    try:
        process = cohort(manifest, output, "--scheduler", read_json(file)["address"])
        wait_for(lambda: len(finished(output)) >= len(before) + 3, process, output)
        for victim in (dask[1], *below(dask[1])):
            victim.kill()
        assert process.wait(timeout=PATIENCE_S) == 3
    finally:
        for one in dask:
            for child in below(one) if one.poll() is None else []:
                child.kill()
            one.kill()
            one.wait()

    after = {name: (output / "series" / name / "status.json").stat().st_mtime_ns for name in before}
    assert after == before  # nothing was done twice
    assert not (output / ".work").exists()
    one, other = fields(without_faults), fields(output)
    assert one.keys() == other.keys() and len(one) == 7 * (NUMBER - len(BROKEN))
    for name, values in one.items():
        assert np.array_equal(values, other[name], equal_nan=True), name
