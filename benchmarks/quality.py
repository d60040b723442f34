"""Train every model on scikit-learn's digits over several seeds and evaluate it.

    python benchmarks/quality.py [--seeds 3] [--jobs 2] [--json FILE]

Everything goes through the command line, as a user would: `fastgen train`, then `fastgen evaluate
--json`; one thread for each run. Beside the models stand scikit-learn's SVC and probabilistic PCA
on the same split, pixels and units.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.svm import SVC

from fastgen.bench.machine import describe
from fastgen.data import ImageDataset, load, to_float

LATENTS = 16
TRAININGS = {
    "classifier": ["classifier"],
    "vae": ["vae", "--latent-dim", str(LATENTS)],
    "autoencoder": ["autoencoder", "--latent-dim", str(LATENTS)],
    "gan": ["gan"],
    # The settings of `make demo`.
    "wgan": ["wgan", "--latent-dim", "16", "--critic-steps", "1", "--lr", "0.001"],
}


def train_and_evaluate(name: str, seed: int, runs: Path) -> dict[str, Any]:
    """One run through the command line, and its numbers."""
    run = runs / f"{name}-{seed}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    fastgen = [sys.executable, "-m", "fastgen"]
    train = [*fastgen, "train", *TRAININGS[name], "--seed", str(seed), "--run", str(run)]
    subprocess.run(train, env=environment, check=True, capture_output=True)
    done = subprocess.run(
        [*fastgen, "evaluate", str(run), "--json"], env=environment, check=True, capture_output=True
    )
    last = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    numbers: dict[str, Any] = json.loads(done.stdout)
    print(name, seed, numbers, flush=True)
    return {"seed": seed, "seconds": last["seconds"], **numbers}


def baselines() -> dict[str, float]:
    """What well-known methods reach on the same images."""

    def pixels(dataset: ImageDataset) -> np.ndarray:
        images = torch.from_numpy(dataset.gather(np.arange(len(dataset))))
        return to_float(images).flatten(1).double().numpy()

    splits = load("digits")
    train, held_out = pixels(splits.train), pixels(splits.held_out)
    svc = SVC(C=10).fit(train, splits.train.labels)
    return {
        "svc_accuracy": float(svc.score(held_out, splits.held_out.labels)),
        "probabilistic_pca_log_likelihood": float(PCA(LATENTS).fit(train).score(held_out)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    jobs = [(name, seed) for name in TRAININGS for seed in range(options.seeds)]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        numbers = list(pool.map(lambda job: train_and_evaluate(*job, Path(folder)), jobs))
    results: dict[str, Any] = {
        "machine": describe(threads=1),
        "date": date.today().isoformat(),
        "commands": {
            name: " ".join(["fastgen train", *words]) for name, words in TRAININGS.items()
        },
        "baselines": baselines(),
        "runs": {
            name: [row for (job, _), row in zip(jobs, numbers, strict=True) if job == name]
            for name in TRAININGS
        },
    }
    for name, rows in results["runs"].items():
        for key in rows[0].keys() - {"seed", "step", "images"}:
            values = [row[key] for row in rows]
            print(f"{name} {key}: median {statistics.median(values):.4g} {sorted(values)}")
    print(results["baselines"])
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
