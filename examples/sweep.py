"""A sweep and its comparison: three strengths of DASD's correction, two seeds each, and what they came to.

    python examples/sweep.py                     # half an hour on two cores: six runs of ten steps, then the table
    python examples/sweep.py --compare <folder>  # the table of runs that are there

The sweep is Hydra's (`-m`, a list for each key), a directory for each run; started again it goes on where it ended. The
page with curves, seeds and paired differences is `self-distill report <folder>`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pandas as pd

from recipes.report import find_runs, load_run

KEY = "algorithm.dasd.target_ratio"
SWEEP = [f"{KEY}=0,0.005,0.03", "data.seed=1,2", "trainer.total_training_steps=10", "trainer.save_freq=-1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", type=Path, metavar="FOLDER", help="of runs that are there")
    options = parser.parse_args()
    folder = options.compare or Path("outputs/sweep")
    if options.compare is None:
        command = [sys.executable, "-m", "recipes.dasd.main", "experiment=starter", "-m", *SWEEP]
        subprocess.run([*command, f"hydra.sweep.dir={folder}"], check=True)
    print(compared(folder).to_string(float_format="{:.3f}".format))


def compared(folder: Path) -> pd.DataFrame:
    """A row for each value of the key: mean and standard deviation over seeds of what the last step came to."""
    rows = []
    for directory in find_runs(folder):
        run = load_run(directory)
        last = run.metrics.iloc[-1]
        accuracy = next((last[name] for name in last.index if name.startswith("val-core/") and "/mean@" in name), None)
        rows.append(
            {
                "target_ratio": run.config.algorithm.dasd.target_ratio,
                "accuracy": accuracy,
                "reward": run.metrics["critic/score/mean"].tail(3).mean(),
                "entropy": last["actor/entropy"],
            }
        )
    return pd.DataFrame(rows).groupby("target_ratio").agg(["mean", "std"])


if __name__ == "__main__":
    main()
