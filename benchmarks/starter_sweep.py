"""Methods and settings on the starter, several seeds each, on the real stack: `python -m benchmarks.starter_sweep`.

Each run is the ordinary training command in a directory of its own under --out. A run that is complete is not done
again, and one that was interrupted goes on, so the sweep can be stopped and restarted, or extended by naming more
settings.  At the end, and with --report alone, it prints the table of the recipes' READMEs: validation Avg@16 (128
problems), mean and standard deviation over seeds, 95 % interval of the mean from Student's t.

    python -m benchmarks.starter_sweep --settings grpo dasd dasd_beta_0.5 --seeds 1 2 3 --steps 10 --out outputs/sweep
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scipy.stats import t as student_t

from recipes.common import run_dir as files
from recipes.common.console import validation_accuracy

LITERAL = ["dasd", "method=dasd_paper_literal"]
NO_CLIP = "self_distill.loss.clip_mode=none"
EXPOSURES = (0, 0.25, 0.5, 0.75, 1)
SETTINGS: dict[str, list[str]] = {
    "grpo": ["grpo"],
    "dasd": ["dasd"],
    "dasd_beta_0.02": ["dasd", "algorithm.dasd.beta=0.02"],
    "dasd_beta_0.5": ["dasd", "algorithm.dasd.beta=0.5"],
    "dasd_beta_2": ["dasd", "algorithm.dasd.beta=2"],
    "dasd_literal": LITERAL,
    "dasd_literal_clip_5": [*LITERAL, "algorithm.dasd.gap_clip=5"],
    "dasd_literal_masked": [*LITERAL, "algorithm.dasd.mask_zero_variance_groups=true"],
    "dasd_literal_beta_0.001": [*LITERAL, "algorithm.dasd.beta=0.001"],
    "dasd_gap_eps_0.1": ["dasd", "algorithm.dasd.gap_eps=0.1"],
    "dasd_entropy_eps_1e-6": ["dasd", "algorithm.dasd.entropy_eps=1.0e-6"],
    "dasd_unmasked": ["dasd", "algorithm.dasd.mask_zero_variance_groups=false"],
    "dasd_rho_0.8": ["dasd", "algorithm.dasd.router_quantile=0.8"],
    "attraction": ["dasd", "algorithm.dasd.direction=constant", "algorithm.dasd.constant=1.0"],
    "repulsion": ["dasd", "algorithm.dasd.direction=constant", "algorithm.dasd.constant=-1.0"],
    "pw_opsd_ppo": ["pw_opsd", "method=pw_opsd_ppo"],
    # The full-vocabulary family. OPSD's one-sided clip apart, because it decides the outcome on a small vocabulary.
    "opsd": ["opsd"],
    "opsd_symmetric": ["opsd", "self_distill.loss.clip_mode=symmetric"],
    "opsd_no_clip": ["opsd", NO_CLIP],
    "opsd_sampled": ["opsd", "method=opsd_sampled"],
    "pw_opsd": ["pw_opsd"],
    "pw_opsd_no_clip": ["pw_opsd", NO_CLIP],
    "atesd": ["atesd"],
    "atesd_no_clip": ["atesd", NO_CLIP],
    **{
        f"exposure_{alpha}": [
            "atesd",
            NO_CLIP,
            "self_distill.exposure.mode=fixed",
            f"self_distill.exposure.fixed_exposure={alpha}",
        ]
        for alpha in EXPOSURES
    },
}


def train(setting: str, seed: int, steps: int, out: Path) -> str:
    """Run one training command to its end; returns a line for the log."""
    directory = out / setting / f"seed_{seed}"
    if finished(directory, steps):
        return f"{setting} seed {seed}: already complete"
    method, *overrides = SETTINGS[setting]
    command = [
        sys.executable,
        "-m",
        f"recipes.{method}.main",
        "experiment=starter",
        *overrides,
        f"hydra.run.dir={directory}",
        f"trainer.total_training_steps={steps}",
        f"trainer.test_freq={steps}",
        f"data.seed={seed}",
        f"actor_rollout_ref.rollout.seed={seed}",
        # Step 0 depends on the seed alone: measured once, by the baseline.
        f"trainer.val_before_train={str(setting == 'grpo').lower()}",
    ]
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "console.txt").open("a") as console:
        code = subprocess.run(command, stdout=console, stderr=subprocess.STDOUT).returncode
    return f"{setting} seed {seed}: {'done' if code == 0 else f'exit code {code}, see {directory}/console.txt'}"


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
    if len(values) < 2:
        return 0.0
    return float(student_t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values)))


def interval(values: list[float], *, scale: float = 100) -> str:
    """`mean ± half-width` of the 95 % interval, in points unless scaled otherwise; a single value as it is."""
    digits = 1 if scale == 100 else 3
    mean = f"{scale * statistics.mean(values):.{digits}f}" if values else "–"
    return mean if len(values) < 2 else f"{mean} ± {scale * half_width(values):.{digits}f}"


def report(settings: list[str], seeds: list[int], steps: int, out: Path) -> str:
    """The table, in Markdown."""
    baseline = [a for s in seeds if (a := accuracy(out / "grpo" / f"seed_{s}", 0)) is not None]
    lines = [
        f"Before training: {interval(baseline)} (step 0, {len(baseline)} seeds)",
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
            f"| {setting} | {len(done)} | {interval([accuracy(d, steps) for d in done])} | "
            f"{interval([last_rewards(d, steps) for d in done])} | "
            + (f"{statistics.median(ratios):.2g} ({max(ratios):.2g})" if ratios else "–")
            + f" | {f'{statistics.mean(positive):.2f}' if positive else '–'} | {statistics.mean(last):.3f} | "
            f"{seconds:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=["grpo", "dasd"], metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("outputs/starter_sweep"))
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time; step times mean something with 1 only")
    parser.add_argument("--report", action="store_true", help="only print the table of what is complete")
    options = parser.parse_args()
    out = options.out.resolve()
    if not options.report:
        jobs = [(name, seed) for seed in options.seeds for name in options.settings]
        with ThreadPoolExecutor(options.parallel) as pool:
            futures = [pool.submit(train, name, seed, options.steps, out) for name, seed in jobs]
            for number, future in enumerate(futures, 1):
                print(f"[{number}/{len(jobs)}] {future.result()}", flush=True)
    print(report(options.settings, options.seeds, options.steps, out))


if __name__ == "__main__":
    main()
