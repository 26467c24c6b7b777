"""Tables and figures of recipes/atesd/README.md from the runs of two of the papers' tables.

    python -m recipes.reproduce.main table=atesd_fig_2 parallel=2
    python -m recipes.reproduce.main table=atesd_2 parallel=2
    python -m benchmarks.exposure_figure --out docs/figures

M(α) is the mean divergence of a run's first step, teacher and student both at the initial weights, on responses of the
student: it depends on α and the seed alone.  Intervals are Student's t over seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

from benchmarks.starter_sweep import accuracy, finished, half_width, interval, records

STEPS = 20
WORLDS = {"starter": "first world", "starter_shortcut": "second world"}
# Directories of the runs; at full exposure OPSD is the same computation.
FIXED = {alpha: f"atesd-exposure.mode_fixed-exposure.fixed_exposure_{alpha:g}" for alpha in (0, 0.25, 0.5, 0.75)}
FIXED[1] = "opsd"
LEARNED = "atesd"
INK, PALE = "#2a6f97", "#a9d6e5"


def value(directory: Path, key: str, step: int) -> float:
    return next(r[key] for r in records(directory) if r["step"] == step and key in r)


MEASURES: dict[str, Callable[[Path], float]] = {
    "mismatch M(α), nats": lambda d: value(d, "divergence/mean", 1),
    "top-1 disagreement, %": lambda d: value(d, "divergence/top1_disagreement", 1),
    f"Avg@16 after {STEPS} steps": lambda d: accuracy(d, STEPS) or 0.0,
}


def scale(measure: str) -> int:
    return 1 if "nats" in measure else 100


def complete(runs: Path) -> list[Path]:
    """Complete runs of one setting, by seed."""
    return [path for path in sorted(runs.glob("seed_*")) if finished(path, STEPS)]


def fixed_exposures(runs: Path, out: Path) -> None:
    """What the mismatch is, and what is learned, at each fixed exposure: a table and a figure."""
    figure, axes = plt.subplots(len(WORLDS), len(MEASURES), figsize=(10, 5.4), constrained_layout=True, sharex=True)
    for row, (world, title) in zip(axes, WORLDS.items(), strict=True):
        found = {alpha: complete(runs / world / name) for alpha, name in FIXED.items()}
        print(f"| {title}, α | seeds | " + " | ".join(MEASURES) + " |\n|---|---|" + "---|" * len(MEASURES))
        for alpha, directories in found.items():
            cells = [
                interval([measure(d) for d in directories], scale=scale(name)) for name, measure in MEASURES.items()
            ]
            print(f"| {alpha:g} | {len(directories)} | " + " | ".join(cells) + " |")
        print()
        for axis, (name, measure) in zip(row, MEASURES.items(), strict=True):
            values = [[scale(name) * measure(d) for d in directories] for directories in found.values()]
            means = [sum(v) / len(v) for v in values]
            axis.errorbar(list(found), means, yerr=[half_width(v) for v in values], marker="o", capsize=3, color=INK)
            for seed in range(min(map(len, values))):  # what differs is the problems
                axis.plot(list(found), [v[seed] for v in values], ".-", color=PALE, linewidth=1, zorder=0)
            axis.set_title(f"{title}: {name}", fontsize=9)
            axis.set_xticks(list(found))
            axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("exposure α: share of the reasoning shown")
    save(figure, out / "exposure_fixed.png")


def learned_exposure(runs: Path, out: Path) -> None:
    """The learned exposure from step to step."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3), constrained_layout=True, sharex=True)
    for axis, key, title in (
        (axes[0], "exposure/alpha", "exposure α in force"),
        (axes[1], "exposure/mean", "mean of the policy, a / (a + b)"),
    ):
        for directory, shade in zip(complete(runs / LEARNED), ("#012a4a", INK, "#61a5c2"), strict=False):
            points = [r[key] for r in records(directory) if "training/global_step" in r and r["step"] <= STEPS]
            axis.step(
                range(1, len(points) + 1), points, where="mid", color=shade, label=directory.name.replace("_", " ")
            )
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
        axis.set_ylim(0, 1)
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[1].legend(frameon=False, fontsize=8)  # where there is room
    save(figure, out / "exposure_learned.png")


def save(figure: plt.Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(f"{path}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("outputs/reproduce/runs/20_steps-loss.clip_mode_none"))
    parser.add_argument("--out", type=Path, default=Path("outputs/figures"))
    options = parser.parse_args()
    fixed_exposures(options.runs, options.out)
    learned_exposure(options.runs / "starter", options.out)


if __name__ == "__main__":
    main()
