"""`python -m recipes.evaluate.main model=<…> data=<…> samples=16`: accuracy and reasoning health; config/evaluate.yaml.

Exits with 0, 1 (failed), 2 (refused) or 130 (stopped); after 1 and 130 the same command with the same hydra.run.dir
goes on.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.markup import escape

from config import CONFIG_DIR
from recipes.common.checks.errors import SettingsError
from recipes.common.checks.machine import count_gpus

if TYPE_CHECKING:
    from recipes.evaluate.console import EvaluationConsole

LOG = "evaluate.log"


def evaluate_command(cfg: DictConfig, directory: Path, preset: str | None = None) -> int:
    """Check, evaluate, summarise; returns the exit code. `preset`: the one that the configuration was made from."""
    from recipes.evaluate.plan import make_plan

    try:
        plan = make_plan(cfg, directory, count_gpus())
    except SettingsError as error:
        print(f"This evaluation was not started:\n{error}", file=sys.stderr)
        return 2
    if cfg.dry_run:
        from rich.console import Console

        from recipes.evaluate.console import plan_table

        Console().print(plan_table(plan))
        return 0

    from recipes.common.processes.launch import output_into, root_cause
    from recipes.common.record.run_dir import write_atomically
    from recipes.evaluate.console import EvaluationConsole
    from recipes.evaluate.run import evaluate
    from recipes.evaluate.summary import SUMMARY, summary_of, to_json

    corrupt: dict[str, int] = {}

    def summarise(status: str) -> dict[str, Any]:
        options = {"status": status, "preset": preset, "config": OmegaConf.to_container(cfg, resolve=True)}
        return summary_of(plan, cfg.prm, cfg.prm_threshold, corrupt, **cast(Any, options))

    directory.mkdir(parents=True, exist_ok=True)
    with output_into(directory / LOG) as terminal:
        console = EvaluationConsole(terminal)
        try:
            corrupt |= evaluate(cfg, plan, console)
            summary = summarise("done")
        except SettingsError as error:
            console.stopped(f"[bold red]refused[/]\n{escape(str(error))}", plan)
            return 2
        except KeyboardInterrupt:
            console.stopped("[yellow]stopped[/]", plan)
            _write_partial(directory, summarise, "stopped", console)
            return 130
        except Exception as error:
            traceback.print_exc()  # into evaluate.log
            reason = f"{escape(root_cause(error))}\ndetails: {escape(str(directory / LOG))}"
            console.stopped(f"[bold red]failed[/] {reason}", plan)
            _write_partial(directory, summarise, "failed", console)
            return 1
        write_atomically(directory / SUMMARY, to_json(summary))
        console.finished(summary, plan)
        _write_report(directory, console)
    return 0


def _write_partial(
    directory: Path, summarise: Callable[[str], dict[str, Any]], status: str, console: EvaluationConsole
) -> None:
    """Summary and report of what was complete when an evaluation ended early; there may be nothing."""
    from recipes.common.record.run_dir import write_atomically
    from recipes.evaluate.summary import SUMMARY, to_json

    try:
        summary = summarise(status)
    except Exception:  # what ended the evaluation may end this too, and has been said
        traceback.print_exc()
        return
    if summary["metrics"]:
        write_atomically(directory / SUMMARY, to_json(summary))
        _write_report(directory, console)


def _write_report(directory: Path, console: EvaluationConsole) -> None:
    """Write report.html; an evaluation is not a failure because its report is."""
    from recipes.report.page import write_evaluation_report

    try:
        console.report(str(write_evaluation_report(directory)))
    except Exception as error:
        traceback.print_exc()  # into evaluate.log
        console.report(f"could not be written ({type(error).__name__}: {error}); details: {directory / LOG}")


def _job(cfg: DictConfig) -> None:
    hydra_config = HydraConfig.get()
    code = evaluate_command(cfg, Path(hydra_config.runtime.output_dir), hydra_config.runtime.choices.get("preset"))
    if code:
        sys.exit(code)


if __name__ == "__main__":
    hydra.main(config_path=str(CONFIG_DIR), config_name="evaluate", version_base="1.3")(_job)()
