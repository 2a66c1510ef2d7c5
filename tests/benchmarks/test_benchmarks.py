"""Every benchmark runs, at tiny size; a new one is found by itself."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
SCRIPTS = sorted(
    path.relative_to(BENCHMARKS).with_suffix("").as_posix()
    for path in BENCHMARKS.rglob("*.py")
    if 'if __name__ == "__main__":' in path.read_text()
)

TINY: dict[str, list[str]] = {
    "accuracy": [
        *("--data", "posteriordb", "--out", "accuracy.json", "--only", "sblri"),
        *("--guides", "ELBO", "IWAE", "--steps", "3", "--draws", "2", "--samples", "60"),
    ],
    "adversarial_elbo": ["--help"],
    "auto": ["--data", "posteriordb", "--only", "sblri", "--seeds", "1", "--out", "auto.json"],
    "auto_bbvi": ["--data", "bbvi", "--only", "mesquite", "--out", "auto_bbvi.json"],
    "auto_dims": ["--one", "2"],
    "auto_random": ["--help"],
    "compiled_battery": ["--match", "joint, diagonal, ELBO stl"],
    "families": ["--steps", "3"],
    "four_points": ["--cells", "four_points.json", "--seeds", "1", "--steps", "2"],
    "implicit_posteriors": ["--help"],
    "iwae": [
        *("--data", "mnist.npz", "--out", "iwae.json", "--particles", "1", "2", "--eager"),
        *("--fraction", "1e-4", "--samples", "6", "--test-images", "3", "--checkpoints", "runs"),
    ],
    "memory": ["--row", "0"],
    "pixelcnn": [
        *("--data", "mnist.npz", "--out", "pixelcnn.json", "--channels", "2", "--layers", "2"),
        *("--epochs", "0.1", "--batch-size", "10", "--samples", "2", "--test-images", "16"),
        *("--latent", "2", "--eager"),
    ],
    "posteriordb": ["--data", "posteriordb", "--only", "sblri", "--chains", "4"],
    "power": ["--help"],
    "ratios": ["--help"],
    "scaling": [
        *("--out", "scaling.json", "--largest", "2", "--only", "eager", "--rounds", "1"),
        *("--seconds", "0.01"),
    ],
    "semi_supervised": [
        *("--data", "mnist.npz", "--out", "labels.json", "--labels-per-class", "1"),
        *("--epochs", "0.1", "--hidden", "4", "--latent", "2", "--batch-size", "20"),
    ],
    "signal_to_noise": ["--particles", "16", "64", "--budget", "200", "--out", "snr"],
    "sparse_rows": ["--steps", "2", "--blocks", "1"],
    "speed/payoff": ["W3", "--rounds", "1"],
    "speed/steps": ["--rounds", "1", "--seconds", "0.02", "W3"],
    "time_to_bound": [
        *("--data", "posteriordb", "--out", "time_to_bound.json", "--limit", "100"),
        *("--only", "sblri-blr/Pyro"),
    ],
    "report": ["--results", ".", "--out", "page/benchmarks.md"],
}
"""Arguments that make each run in seconds; those with ``--help`` have no such size."""

ELSEWHERE = {
    "dirac_gan": "tests/docs/test_ratios_page.py",
    "discrete_gradients": "tests/docs/test_losses_page.py",
    "numpyro_accuracy": "benchmarks/accuracy.py",
    "speed/numpyro_side": "benchmarks/speed/steps.py",
    "subsampling": "tests/losses/test_subsampling.py",
}
"""Scripts that are run by another file."""


def draw_data(folder: Path) -> None:
    """Write data sets in the files that the benchmarks read."""
    rng = np.random.default_rng(0)
    images = {"train": 500, "test": 30}
    pixels = {f"x_{k}": rng.integers(0, 256, (n, 784), dtype=np.uint8) for k, n in images.items()}
    digits = {f"y_{k}": np.arange(n, dtype=np.uint8) % 10 for k, n in images.items()}
    np.savez(folder / "mnist.npz", **pixels, **digits)
    x, noise = rng.normal(size=(40, 5)), rng.normal(size=40)
    (folder / "posteriordb").mkdir()
    content = {"X": x.tolist(), "y": (x.sum(1) + noise).tolist()}
    (folder / "posteriordb" / "sblri.json").write_text(json.dumps(content))
    cases = {"cases": [{"posterior": "sblri-blr", "log_evidence": -80.0}]}
    (folder / "posteriordb" / "cases.json").write_text(json.dumps(cases))
    moments = {"mean": np.ones(6), "sd": np.full(6, 0.2)}
    np.savez(folder / "posteriordb" / "sblri-blr.npz", **moments)
    (folder / "bbvi").mkdir()
    names = ("diam1", "diam2", "canopy_height", "weight")
    content = {name: rng.lognormal(size=40).tolist() for name in names}
    (folder / "bbvi" / "mesquite_volume.json").write_text(json.dumps(content))
    bounds = {"dim": 3, "stl": "1.0 ± 0.1", "stl_is10": "1.1 ± 0.1"}
    case = {"model_name": "mesquite_volume", "published_bound_mean_and_sd_over_seeds": bounds}
    (folder / "bbvi" / "cases.json").write_text(json.dumps({"cases": [case]}))


def test_every_benchmark_has_a_tiny_size() -> None:
    assert len(SCRIPTS) > 20
    assert {*TINY, *ELSEWHERE} == set(SCRIPTS)
    for name, where in ELSEWHERE.items():
        assert Path(name).name in (ROOT / where).read_text(), f"{where} does not run {name}"


@pytest.mark.slow
def test_every_benchmark_runs(tmp_path: Path) -> None:
    draw_data(tmp_path)
    runner = Path(__file__).with_name("run_tiny.py")
    done = subprocess.run(
        [sys.executable, str(runner), json.dumps(TINY)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    failures = json.loads(done.stdout)
    assert not any(failures.values()), "\n".join(failures.values())
    cells = {path.stem: read(path) for path in tmp_path.glob("*.json") if path.stem in TINY}
    nats = [value["nll"] for value in cells["iwae"].values()]
    assert len(set(nats)) == len(nats) == 10, "cells of the table share parameters"
    page = (tmp_path / "page" / "benchmarks.md").read_text()
    assert f"{nats[0]:.2f} ±" in page
    assert {path.name for path in (tmp_path / "page" / "figures").iterdir()} == {
        "benchmarks_accuracy.png",
        "benchmarks_scaling.png",
    }


def read(path: Path) -> dict[str, Any]:
    """Return the cells of a file of results, after a look at what it says of the machine."""
    content = json.loads(path.read_text())
    assert content["about"].keys() == {"date", "machine", "cores", "threads", "versions"}
    assert {"torch", "pyro-ppl", "pyro-ext"} <= content["about"]["versions"].keys()
    cells: dict[str, Any] = content["cells"]
    return cells
