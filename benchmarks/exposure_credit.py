"""Does the exposure's controller learn, and from what? `python -m benchmarks.exposure_credit`.

Runs ATESD's controller on the starter under several credits and seeds (of data, rollouts and of the controller's own
draws), long enough for 20 updates of the controller and more, as `benchmarks.starter_sweep` does: what is complete is
not done again, and what was interrupted goes on.  Then, for each credit, over the seeds:

    updates      of the controller, fewest of any run
    exposure     mean of the policy at the first and at the last decision, and their difference
    prediction   rank correlation, over a run's decisions, of the reward that a decision got with the student's gain
                 after it: training reward of the next steps over that of the steps before, and fall of the probe's
                 NLL.  Both fade as training goes on, so a straight line in time is taken out of each.

Intervals are Student's t over seeds: windows overlap, so a run's decisions are not independent of each other.

    python -m benchmarks.exposure_credit --seeds 1 2 3 4 5 --steps 60 --out outputs/exposure_credit
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from benchmarks.starter_sweep import finished, half_width, job, records
from recipes.common.metric_names import PROBE_NLL, REWARD
from recipes.common.teacher.decisions import CREDITS
from recipes.reproduce.runs import train_all

# A decision is held for one update here, and over one update the delayed credit is that of one step.
APART = tuple(credit for credit in CREDITS if credit != "delayed")


def decisions(directory: Path) -> list[dict]:
    """The completed decisions of a run, oldest first, from its last checkpoint."""
    saved = sorted(directory.glob("checkpoints/global_step_*/**/exposure_controller.json"), key=_step)
    return json.loads(saved[-1].read_text(encoding="utf-8"))["memory"]["decided"] if saved else []


def _step(path: Path) -> int:
    return int(next(part for part in path.parts if part.startswith("global_step_")).removeprefix("global_step_"))


def reward_gain(series: dict[int, float], decided: int, horizon: int) -> float | None:
    """Mean training reward of `horizon` steps that a decision could change, minus that of as many before it.

    Args:
        series: training reward by step.  Step s samples from the weights after s − 1 updates, and a decision made after
            `decided` updates first acts in update decided + 1.
    """
    after = [series.get(step) for step in range(decided + 2, decided + 2 + horizon)]
    before = [series.get(step) for step in range(decided + 2 - horizon, decided + 2)]
    known = [value for value in (*after, *before) if value is not None]
    if len(known) < 2 * horizon:
        return None
    return statistics.mean(known[:horizon]) - statistics.mean(known[horizon:])


def probe_gain(series: dict[int, float], decided: int, horizon: int) -> float | None:
    """Fall of the probe's NLL, nats a token, over the `horizon` updates from a decision on."""
    before, after = series.get(decided), series.get(decided + horizon)
    return None if before is None or after is None else before - after


def prediction(times: Sequence[float], rewards: Sequence[float], gains: Sequence[float | None]) -> float | None:
    """Rank correlation of rewards and gains without their linear trends; None of a constant or below four pairs."""
    rows = [row for row in zip(times, rewards, gains, strict=True) if row[2] is not None]
    if len(rows) < 4:
        return None
    t, *both = np.asarray(rows, dtype=np.float64).T
    left = [values - np.polyval(np.polyfit(t, values, 1), t) for values in both]
    if any(np.ptp(values) < 1e-12 for values in left):
        return None
    return float(spearmanr(*left).statistic)


def _cell(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    half = f" ± {half_width(known):.3f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.3f}{half}" + (f" ({len(known)} seeds)" if len(known) < len(values) else "")


def report(credits_: Sequence[str], seeds: Sequence[int], steps: int, horizon: int, out: Path) -> str:
    """The table, in Markdown."""
    lines = [
        "| credit | seeds | decisions a run | updates, fewest | policy's mean, first | last | moved | "
        "predicts the training reward's gain | predicts the probe's gain |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for credit in credits_:
        done = [out / f"credit_{credit}" / f"seed_{seed}" for seed in seeds]
        done = [directory for directory in done if finished(directory, steps)]
        if not done:
            continue
        first, last, on_reward, on_probe, counts, updates = [], [], [], [], [], []
        for directory in done:
            found = records(directory)
            made = decisions(directory)
            means = [r["exposure/mean"] for r in found if "exposure/mean" in r]
            first.append(means[0])
            last.append(means[-1])
            counts.append(len(made))
            updates.append(max(r.get("exposure/updates", 0.0) for r in found))
            times, rewards = [d["step"] for d in made], [d["reward"] for d in made]
            for gain, name, into in ((reward_gain, REWARD, on_reward), (probe_gain, PROBE_NLL, on_probe)):
                series = {r["step"]: r[name] for r in found if name in r}
                into.append(prediction(times, rewards, [gain(series, t, horizon) for t in times]))
        moved: list[float | None] = [b - a for a, b in zip(first, last, strict=True)]
        lines.append(
            f"| {credit} | {len(done)} | {statistics.mean(counts):.0f} | {min(updates):.0f} | {_cell([*first])} | "
            f"{_cell([*last])} | {_cell(moved)} | {_cell(on_reward)} | {_cell(on_probe)} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--credits", nargs="+", choices=CREDITS, default=APART, metavar="NAME", help=", ".join(CREDITS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--steps", type=int, default=60, help="60 make 26 updates of the controller or more")
    parser.add_argument("--horizon", type=int, default=5, help="steps over which a gain is measured")
    parser.add_argument("--out", type=Path, default=Path("outputs/exposure_credit"))
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time")
    parser.add_argument("--overrides", nargs="+", default=[], metavar="KEY=VALUE", help="for every run")
    parser.add_argument("--report", action="store_true", help="only report on what is complete")
    options = parser.parse_args()
    out = options.out.resolve()
    jobs = [
        job(f"credit_{credit}", seed, options.steps, out, "starter", options.overrides)
        for seed in options.seeds
        for credit in options.credits
    ]
    if not options.report:
        train_all(jobs, parallel=options.parallel, forked=True)
    print(report(options.credits, options.seeds, options.steps, options.horizon, out))
    return 0 if all(each.complete for each in jobs) else 1


if __name__ == "__main__":
    sys.exit(main())
