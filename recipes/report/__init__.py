"""Writes one HTML page for each run and each evaluation, and one that compares runs; see README.md.

It is also where Python reads a run:

    from recipes.report import load_run

    run = load_run("outputs/starter/dasd/2026-11-25_16-44-25")
    run.metrics["critic/score/mean"].plot()     # a pandas table, a row a step
    run.config.algorithm.dasd.target_ratio              # the resolved configuration
    run.responses                               # a pandas table of sampled responses with their token credit
"""

from recipes.report.run_data import NotARun, Run, find_runs, load_run

__all__ = ["NotARun", "Run", "find_runs", "load_run"]
