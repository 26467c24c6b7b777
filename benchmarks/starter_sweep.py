"""Methods and settings on the starter, several seeds each, on the real stack: `python -m benchmarks.starter_sweep`.

Each run is the ordinary training command in a directory of its own under --out. A run that is complete is not done
again, and one that was interrupted goes on, so the sweep can be stopped and restarted, or extended by naming more
settings. The first Ctrl-C lets the running ones end after their step, with a checkpoint; the second ends them at once.
At the end, and with --report alone, it prints the table of the recipes' READMEs: validation Avg@16 (128 problems), mean
and standard deviation over seeds, 95 % interval of the mean from Student's t; and it writes the page that compares all
runs, <out>/comparison.html. All methods and controls in both worlds: `make compare` (recipes/reproduce).

    python -m benchmarks.starter_sweep --settings grpo dasd dasd_beta_0.5 --seeds 1 2 3 --steps 10 --out outputs/sweep
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from config import CONFIG_DIR
from recipes.common.record import run_dir as files
from recipes.common.record.console import validation_accuracy
from recipes.common.teacher.decisions import CREDITS
from recipes.report.compare import estimate
from recipes.report.page import comparison_page, write_page
from recipes.report.run_data import NotARun, load_run
from recipes.reproduce.runs import Job, seeded, train_all

# Every method of the package but the one that is there to show why it fails, which has a name of its own below.
METHODS = sorted(p.stem for p in (CONFIG_DIR / "method").glob("*.yaml") if p.stem != "dasd_paper_literal")
# As DASD was measured before its scale followed a ratio: recipes/dasd/README.md.
FLOOR = ["method=dasd", "algorithm.dasd.gap_eps=1"]
FLOOR_BETA = [*FLOOR, "algorithm.dasd.beta=0.02"]
LITERAL = ["method=dasd_paper_literal"]
NO_CLIP = "self_distill.loss.clip_mode=none"
SETTINGS: dict[str, list[str]] = {
    **{method: [f"method={method}"] for method in METHODS},
    **{f"dasd_beta_{beta}": [*FLOOR, f"algorithm.dasd.beta={beta}"] for beta in (0.02, 0.1, 0.5, 2)},
    "dasd_literal": LITERAL,
    "dasd_literal_clip_5": [*LITERAL, "algorithm.dasd.gap_clip=5"],
    "dasd_literal_masked": [*LITERAL, "algorithm.dasd.mask_zero_variance_groups=true"],
    "dasd_literal_beta_0.001": [*LITERAL, "algorithm.dasd.beta=0.001"],
    "dasd_gap_eps_0.1": ["method=dasd", "algorithm.dasd.gap_eps=0.1", "algorithm.dasd.beta=0.02"],
    "dasd_entropy_eps_1e-6": [*FLOOR_BETA, "algorithm.dasd.entropy_eps=1.0e-6"],
    "dasd_unmasked": [*FLOOR_BETA, "algorithm.dasd.mask_zero_variance_groups=false"],
    "dasd_rho_0.8": [*FLOOR_BETA, "algorithm.dasd.router_quantile=0.8"],
    "attraction": ["method=dasd", "algorithm.dasd.direction=constant", "algorithm.dasd.constant=1.0"],
    "repulsion": ["method=dasd", "algorithm.dasd.direction=constant", "algorithm.dasd.constant=-1.0"],
    # OPSD's one-sided clip apart, because it decides the outcome on a small vocabulary.
    "opsd_symmetric": ["method=opsd", "self_distill.loss.clip_mode=symmetric"],
    # The controller under each credit, as often updated as a run of some 50 steps allows: benchmarks.exposure_credit.
    **{
        f"credit_{credit}": [
            "method=atesd",
            NO_CLIP,
            # A fifth of the starter's: at that rate the unclipped loss loses in its second ten steps what it won.
            "actor_rollout_ref.actor.optim.lr=1.0e-5",
            f"self_distill.exposure.controller.credit={credit}",
            "self_distill.exposure.controller.hold=1",
            "self_distill.exposure.controller.decisions_per_update=2",
        ]
        for credit in CREDITS
    },
}


def job(setting: str, seed: int, steps: int, out: Path, experiment: str, overrides: Sequence[str] = ()) -> Job:
    """One run of the sweep."""
    return Job(
        name=f"{setting} seed {seed}",
        directory=out / setting / f"seed_{seed}",
        steps=steps,
        overrides=(
            f"experiment={experiment}",
            *SETTINGS[setting],
            *seeded(seed),
            # Step 0 depends on the seed alone: measured once, by the baseline.
            f"trainer.val_before_train={str(setting == 'grpo').lower()}",
            *overrides,
        ),
    )


def records(directory: Path) -> list[dict]:
    return list(files.read_metrics(directory))


def accuracy(directory: Path, step: int) -> float | None:
    """Validation accuracy at a step, or None if there is none."""
    found = [a[1] for r in records(directory) if r["step"] == step and (a := validation_accuracy(r))]
    return found[0] if found else None


def last_rewards(directory: Path, steps: int) -> float:
    """Mean training reward (at temperature 1, without top-p) of the last three steps."""
    return statistics.mean(
        r["critic/score/mean"] for r in records(directory) if "training/global_step" in r and r["step"] > steps - 3
    )


def finished(directory: Path, steps: int) -> bool:
    return accuracy(directory, steps) is not None


def half_width(values: list[float]) -> float:
    """Half of the 95 % interval of the mean by Student's t; 0 with fewer than two values."""
    found = estimate(values)
    return found.half or 0.0 if found else 0.0


def interval(values: list[float], *, scale: float = 100) -> str:
    """`mean ± half-width` of the 95 % interval, in points unless scaled otherwise; a single value as it is."""
    digits = 1 if scale == 100 else 3
    mean = f"{scale * statistics.mean(values):.{digits}f}" if values else "–"
    return mean if len(values) < 2 else f"{mean} ± {scale * half_width(values):.{digits}f}"


def report(settings: list[str], seeds: list[int], steps: int, out: Path) -> str:
    """The table, in Markdown."""
    baseline = [a for s in seeds if (a := accuracy(out / "grpo" / f"seed_{s}", 0)) is not None]
    lines = [
        f"Before training: {interval(baseline)} (step 0, {len(baseline)} seed{'s' * (len(baseline) != 1)})",
        "",
        f"| setting | seeds | Avg@16 at step {steps} | reward, last 3 steps | correction / advantage, median (max) | "
        "positive ω | entropy, last | s a step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for setting in settings:
        done = [out / setting / f"seed_{s}" for s in seeds if finished(out / setting / f"seed_{s}", steps)]
        if not done:
            continue
        steps_of = [r for d in done for r in records(d) if "training/global_step" in r]
        ratios = [r["credit/correction_ratio"] for r in steps_of if r.get("credit/correction_ratio") is not None]
        positive = [r["credit/omega/positive_share"] for r in steps_of if "credit/omega/positive_share" in r]
        last = [r["actor/entropy"] for r in steps_of if r["step"] == steps]
        seconds = statistics.median(r["timing_s/step"] for r in steps_of)
        lines.append(
            f"| {setting} | {len(done)} | {interval([a for d in done if (a := accuracy(d, steps)) is not None])} | "
            f"{interval([last_rewards(d, steps) for d in done])} | "
            + (f"{statistics.median(ratios):.2g} ({max(ratios):.2g})" if ratios else "–")
            + f" | {f'{statistics.mean(positive):.2f}' if positive else '–'} | {statistics.mean(last):.3f} | "
            f"{seconds:.1f} |"
        )
    return "\n".join(lines)


def compare(settings: list[str], seeds: list[int], out: Path) -> Path | None:
    """Write the page that compares what has been run so far; returns its path, None if nothing has a step yet."""
    runs, notices = [], []
    for directory in (out / name / f"seed_{seed}" for name in settings for seed in seeds):
        try:
            runs.append(load_run(directory))
        except NotARun as error:
            notices.append(f"left out: {error}")
    return write_page(out / "comparison.html", comparison_page(runs, notices)) if runs else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--settings", nargs="+", choices=SETTINGS, default=METHODS, metavar="NAME", help=f"of {', '.join(SETTINGS)}"
    )
    parser.add_argument("--experiment", choices=("starter", "starter_shortcut"), default="starter", help="the world")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", type=Path, help="outputs/<experiment>_sweep")
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time; step times mean something with 1 only")
    parser.add_argument("--overrides", nargs="+", default=[], metavar="KEY=VALUE", help="for every run")
    parser.add_argument("--report", action="store_true", help="only report on what is complete")
    options = parser.parse_args()
    out = (options.out or Path("outputs") / f"{options.experiment}_sweep").resolve()
    jobs = [
        job(name, seed, options.steps, out, options.experiment, options.overrides)
        for seed in options.seeds
        for name in options.settings
    ]
    if not options.report:
        train_all(jobs, parallel=options.parallel, forked=True)
    print(report(options.settings, options.seeds, options.steps, out))
    page = compare(options.settings, options.seeds, out)
    if page:
        print(f"\ncomparison: {page}")
    return 0 if all(job.complete for job in jobs) else 1


if __name__ == "__main__":
    sys.exit(main())
