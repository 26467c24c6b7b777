"""Tables and figures of recipes/atesd/README.md from the runs of `benchmarks.starter_sweep`.

    python -m benchmarks.starter_sweep --settings exposure_0 exposure_0.25 exposure_0.5 exposure_0.75 opsd_no_clip
    python -m benchmarks.starter_sweep --settings atesd_no_clip exposure_random opsd_no_clip --steps 20
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

from benchmarks.starter_sweep import EXPOSURES, accuracy, finished, half_width, interval, last_rewards, records

LEARNED = {"atesd_no_clip": "learned", "exposure_random": "random", "opsd_no_clip": "fixed at 1"}
INK, PALE = "#2a6f97", "#a9d6e5"


def directories(runs: Path, names: list[str], steps: int) -> list[Path]:
    """Complete runs of some settings that are the same computation, one for each seed."""
    found = [path for name in names for path in sorted((runs / name).glob("seed_*")) if finished(path, steps)]
    return list({path.name: path for path in reversed(found)}.values())


def value(directory: Path, key: str, step: int) -> float:
    return next(r[key] for r in records(directory) if r["step"] == step and key in r)


def curve(directory: Path, key: str, steps: int) -> list[float]:
    return [r[key] for r in records(directory) if "training/global_step" in r and r["step"] <= steps]


def print_table(head: str, rows: dict[str, list[Path]], columns: dict[str, Callable[[Path], float]]) -> None:
    """A row a setting; a cell is the mean over its runs with its interval, in points but for nats and the exposure."""
    print(f"| {head} | seeds | " + " | ".join(columns) + " |\n|---|---|" + "---|" * len(columns))
    for name, runs in rows.items():
        cells = [
            interval([measure(d) for d in runs], scale=1 if "nats" in column or "α" in column else 100)
            for column, measure in columns.items()
        ]
        print(f"| {name} | {len(runs)} | " + " | ".join(cells) + " |")
    print()


def fixed_exposures(runs: Path, steps: int, out: Path) -> None:
    """What the mismatch is, and what is learned, at each fixed exposure."""
    # At full exposure OPSD without clip is the same computation.
    found = {a: directories(runs, [f"exposure_{a}"] + ["opsd_no_clip"] * (a == 1), steps) for a in EXPOSURES}
    found = {alpha: directories for alpha, directories in found.items() if directories}
    columns: dict[str, Callable[[Path], float]] = {
        "mismatch M(α), nats": lambda d: value(d, "divergence/mean", 1),
        "top-1 disagreement, %": lambda d: value(d, "divergence/top1_disagreement", 1),
        f"Avg@16 after {steps} steps": lambda d: accuracy(d, steps) or 0.0,
    }
    print_table("α", {f"{alpha:g}": directories for alpha, directories in found.items()}, columns)
    if not found:
        return
    figure, axes = plt.subplots(1, 3, figsize=(10, 3), constrained_layout=True)
    for axis, (name, measure) in zip(axes, columns.items(), strict=True):
        scale = 1 if "nats" in name else 100
        values = [[scale * measure(d) for d in directories] for directories in found.values()]
        means = [sum(v) / len(v) for v in values]
        axis.errorbar(list(found), means, yerr=[half_width(v) for v in values], marker="o", capsize=3, color=INK)
        for seed in {d.name for directories in found.values() for d in directories}:  # what differs is the problems
            line = {a: scale * measure(d) for a, directories in found.items() for d in directories if d.name == seed}
            axis.plot(list(line), list(line.values()), ".-", color=PALE, linewidth=1, zorder=0)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("exposure α: share of the reasoning shown")
        axis.set_xticks(list(found))
        axis.spines[["top", "right"]].set_visible(False)
    save(figure, out / "exposure_fixed.png")


def learned_exposure(runs: Path, steps: int, out: Path) -> None:
    """Learned against random and full exposure, and the learned one from step to step."""
    found = {label: directories(runs, [name], steps) for name, label in LEARNED.items()}
    columns: dict[str, Callable[[Path], float]] = {
        "Avg@16 after 10 steps": lambda d: accuracy(d, 10) or 0.0,
        f"after {steps}": lambda d: accuracy(d, steps) or 0.0,
        "training reward, last 3 steps": lambda d: last_rewards(d, steps),
    }
    print_table("exposure", {label: directories for label, directories in found.items() if directories}, columns)
    if not found["learned"]:
        return
    figure, axes = plt.subplots(1, 2, figsize=(10, 3), constrained_layout=True, sharex=True)
    for axis, key, title in (
        (axes[0], "exposure/alpha", "exposure α in force"),
        (axes[1], "exposure/mean", "mean of the policy, a / (a + b)"),
    ):
        for directory, shade in zip(sorted(found["learned"]), ("#012a4a", INK, "#61a5c2"), strict=False):
            points, seed = curve(directory, key, steps), directory.name.replace("_", " ")
            axis.step(range(1, len(points) + 1), points, where="mid", color=shade, label=seed)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
        axis.set_ylim(0, 1)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    save(figure, out / "exposure_learned.png")


def save(figure: plt.Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(f"{path}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("outputs/starter_sweep"))
    parser.add_argument("--steps", type=int, default=10, help="of the runs at a fixed exposure")
    parser.add_argument("--learned-steps", type=int, default=20, help="of the runs that are compared with the learned")
    parser.add_argument("--out", type=Path, default=Path("outputs/figures"))
    options = parser.parse_args()
    fixed_exposures(options.runs, options.steps, options.out)
    learned_exposure(options.runs, options.learned_steps, options.out)


if __name__ == "__main__":
    main()
