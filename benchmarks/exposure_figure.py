"""Table and figure of recipes/atesd/README.md from the runs of `benchmarks.starter_sweep`.

    python -m benchmarks.starter_sweep --settings exposure_0 exposure_0.25 exposure_0.5 exposure_0.75 opsd_no_clip
    python -m benchmarks.exposure_figure --out docs/figures/exposure_sweep.png

M(α) is the mean divergence of a run's first step, teacher and student both at the initial weights, on responses of the
student: it depends on α and the seed alone.  Intervals are Student's t over seeds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.starter_sweep import EXPOSURES, accuracy, finished, half_width, interval, records


def directories(runs: Path, alpha: float, steps: int) -> list[Path]:
    """Complete runs at an exposure; at full exposure those of OPSD without clip, which is the same computation."""
    names = [f"exposure_{alpha}"] + ["opsd_no_clip"] * (alpha == 1)
    found = [path for name in names for path in sorted((runs / name).glob("seed_*")) if finished(path, steps)]
    return list({path.name: path for path in reversed(found)}.values())


def first_step(directory: Path, key: str) -> float:
    return next(r[key] for r in records(directory) if r["step"] == 1 and key in r)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("outputs/starter_sweep"))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("exposure_sweep.png"))
    options = parser.parse_args()

    found = {alpha: directories(options.runs, alpha, options.steps) for alpha in EXPOSURES}
    found = {alpha: runs for alpha, runs in found.items() if runs}
    columns = {
        "mismatch M(α), nats": lambda d: first_step(d, "divergence/mean"),
        "top-1 disagreement": lambda d: first_step(d, "divergence/top1_disagreement"),
        f"Avg@16 after {options.steps} steps": lambda d: accuracy(d, options.steps),
    }
    print("| α | seeds | " + " | ".join(columns) + " |\n|---|---|" + "---|" * len(columns))
    for alpha, runs in found.items():
        cells = [
            interval([measure(d) for d in runs], scale=1 if "nats" in name else 100)
            for name, measure in columns.items()
        ]
        print(f"| {alpha} | {len(runs)} | " + " | ".join(cells) + " |")

    figure, axes = plt.subplots(1, 3, figsize=(10, 3), constrained_layout=True)
    for axis, (name, measure) in zip(axes, columns.items(), strict=True):
        values = [[measure(d) for d in runs] for runs in found.values()]
        means = [sum(v) / len(v) for v in values]
        axis.errorbar(list(found), means, yerr=[half_width(v) for v in values], marker="o", capsize=3, color="#2a6f97")
        for alpha, points in zip(found, values, strict=True):
            axis.plot([alpha] * len(points), points, ".", color="#a9d6e5", zorder=0)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("exposure α: share of the reasoning shown")
        axis.set_xticks(list(found))
        axis.spines[["top", "right"]].set_visible(False)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=110)
    print(f"\n{options.out}")


if __name__ == "__main__":
    main()
