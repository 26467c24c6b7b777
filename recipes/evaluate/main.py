"""`python -m recipes.evaluate.main model=<…> data=<…> samples=16`: accuracy and reasoning health; config/evaluate.yaml.

Exits with 0, 1 (failed), 2 (refused) or 130 (stopped); after 1 and 130 the same command with the same hydra.run.dir
goes on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from recipes.common.entry import CONFIG_DIR, count_gpus
from recipes.common.settings import SettingsError  # also registers the resolver for the embedded files


def evaluate_command(cfg: DictConfig, directory: Path) -> int:
    """Check, evaluate, summarise; returns the exit code."""
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

    from recipes.common.launch import output_into, root_cause
    from recipes.common.run_dir import write_atomically
    from recipes.evaluate.console import EvaluationConsole
    from recipes.evaluate.run import evaluate
    from recipes.evaluate.summary import summary_of, to_json

    directory.mkdir(parents=True, exist_ok=True)
    with output_into(directory / "evaluate.log") as terminal:
        console = EvaluationConsole(terminal)
        try:
            corrupt = evaluate(cfg, plan, console)
            summary = summary_of(plan, cfg.prm, cfg.prm_threshold, corrupt)
        except KeyboardInterrupt:
            console.stopped("[yellow]stopped[/]", plan)
            return 130
        except SettingsError as error:
            console.stopped(f"[bold red]refused[/]\n{error}", plan)
            return 2
        except Exception as error:
            import traceback

            traceback.print_exc()  # into evaluate.log
            console.stopped(f"[bold red]failed[/] {root_cause(error)}\ndetails: {directory / 'evaluate.log'}", plan)
            return 1
        write_atomically(directory / "summary.json", to_json(summary))
        console.finished(summary, plan)
    return 0


def _job(cfg: DictConfig) -> None:
    code = evaluate_command(cfg, Path(HydraConfig.get().runtime.output_dir))
    if code:
        sys.exit(code)


if __name__ == "__main__":
    hydra.main(config_path=str(CONFIG_DIR), config_name="evaluate", version_base="1.3")(_job)()
