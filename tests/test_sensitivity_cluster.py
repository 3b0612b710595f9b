"""`secateur.sensitivity` on Dask clusters of this machine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from distributed import LocalCluster

import secateur
from secateur import SecateurError, UsageError
from secateur.runtime.cluster import on_cluster, pack

from .cli_runs import invoke
from .pass_runs import normal
from .sensitivity_models import network, network_weights

DATA = {"x": normal(12, 3, 6, 6, seed=9)}
OPTIONS: dict[str, Any] = {"calibration": DATA, "ratios": (0.25, 0.5), "threads": 1}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    """A scheduler and two workers of two threads each, in this process."""
    with LocalCluster(
        n_workers=2,
        threads_per_worker=2,
        processes=False,
        dashboard_address=":0",
        local_directory=str(tmp_path / "dask"),
        protocol="tcp://",
        host="127.0.0.1",
    ) as cluster:
        yield cluster


def unpacked(tmp_path: Path) -> list[Path]:
    """What workers still hold of what they were sent."""
    return [p for p in (tmp_path / "dask").rglob("secateur-*") if p.is_dir()]


def test_the_cluster_finds_what_this_process_finds(cluster: LocalCluster, tmp_path: Path) -> None:
    model = network(network_weights())
    expected = secateur.sensitivity(model, **OPTIONS).to_json()
    seen: list[float | None] = []
    found = secateur.sensitivity(
        model,
        scheduler=cluster.scheduler_address,
        progress=lambda message, done: seen.append(done) if message == "measure" else None,
        **OPTIONS,
    )
    assert found.to_json() == expected
    assert seen == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert unpacked(tmp_path) == []


def test_weights_in_other_files_travel_too(cluster: LocalCluster, tmp_path: Path) -> None:
    model = network(network_weights())
    expected = secateur.sensitivity(model, **OPTIONS).to_json()
    folder = tmp_path / "model"
    folder.mkdir()
    onnx.save(
        model,
        folder / "m.onnx",
        save_as_external_data=True,
        all_tensors_to_one_file=False,
        size_threshold=0,
    )
    assert len(list(folder.iterdir())) == 4
    found = secateur.sensitivity(folder / "m.onnx", scheduler=cluster.scheduler_address, **OPTIONS)
    assert found.to_json() == expected


def test_results_are_kept_and_resumed(cluster: LocalCluster, tmp_path: Path) -> None:
    model, work = network(network_weights()), tmp_path / "work"

    def interrupt(message: str, done: float | None) -> None:
        if message == "measure" and done == 0.5:
            raise KeyboardInterrupt

    address = cluster.scheduler_address
    with pytest.raises(KeyboardInterrupt):
        secateur.sensitivity(model, scheduler=address, work=work, progress=interrupt, **OPTIONS)
    found = secateur.sensitivity(model, scheduler=address, work=work, **OPTIONS)
    assert (found.resumed, found.measured) == (2, 2)
    assert found.to_json() == secateur.sensitivity(model, **OPTIONS).to_json()


def test_workers_of_other_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the command line, with a worker that has nothing but its own folder."""
    monkeypatch.chdir(tmp_path)
    onnx.save(network(network_weights()), "m.onnx")
    np.savez("c.npz", **DATA)  # type: ignore[arg-type]
    line = ["sensitivity", "m.onnx", "--calibration", "c.npz", "--ratios", "0.5"]
    with LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        dashboard_address=":0",
        local_directory=str(tmp_path / "dask"),
    ) as cluster:
        result = invoke(*line, "--scheduler", cluster.scheduler_address, "-o", "there.csv")
        assert "2 candidates measured" in result.stdout
        assert unpacked(tmp_path) == []
    invoke(*line, "--threads", "1", "--jobs", "1", "-o", "here.csv")
    assert Path("there.csv").read_bytes() == Path("here.csv").read_bytes()


def fail(folder: Path, item: str) -> str:
    if item == "ours":
        raise UsageError("wrong")
    raise ZeroDivisionError(folder)


def name_files(folder: Path, item: str) -> list[str]:
    return [item, *sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.txt"))]


def nothing() -> None:
    pass


def test_functions_get_the_files_and_their_errors_arrive(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("a")
    parcel = pack({"in/a.txt": tmp_path / "a.txt", "b.txt": tmp_path / "a.txt"})
    address = cluster.scheduler_address
    found = dict(on_cluster(address, parcel, name_files, ["1", "2"], nothing))
    assert found == {k: [k, "b.txt", "in/a.txt"] for k in ("1", "2")}
    with pytest.raises(UsageError, match="wrong"):
        list(on_cluster(address, parcel, fail, ["ours"], nothing))
    with pytest.raises(SecateurError, match="failed: ZeroDivisionError") as caught:
        list(on_cluster(address, parcel, fail, ["theirs"], nothing))
    assert caught.value.exit_code == 5


def test_a_cluster_without_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.runtime.cluster.WAIT", 0.5)
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as cluster,
        pytest.raises(UsageError, match="has no workers"),
    ):
        secateur.sensitivity(
            network(network_weights()), scheduler=cluster.scheduler_address, **OPTIONS
        )


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nonsense://x", "127.0.0.1:notaport"])
def test_an_address_where_nothing_is(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.runtime.cluster.WAIT", 0.5)
    with pytest.raises(UsageError, match="no scheduler answers at") as caught:
        secateur.sensitivity(network(network_weights()), scheduler=address, **OPTIONS)
    assert "\n" not in str(caught.value)


def test_without_distributed() -> None:
    program = """
import sys
sys.modules["distributed"] = None
from secateur.runtime.cluster import on_cluster, pack
try:
    list(on_cluster("tcp://127.0.0.1:9", pack({}), print, [1], print))
except Exception as error:
    assert error.exit_code == 2 and "secateur[cluster]" in str(error), error
else:
    raise SystemExit("no error")
"""
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parent.parent, check=True)
