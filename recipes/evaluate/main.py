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

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.markup import escape

from recipes.command_line import Command, run
from recipes.common.checks.errors import SettingsError
from recipes.common.checks.machine import count_gpus

if TYPE_CHECKING:
    from recipes.evaluate.console import EvaluationConsole

LOG = "evaluate.log"
COMMAND = Command(
    module="recipes.evaluate.main",
    what=(
        "Evaluate models on prepared sets: Avg@n, Pass@k and Maj@n with intervals, reasoning health, and paired "
        "differences of several models. The preset says how a paper evaluates; the same hydra.run.dir goes on."
    ),
    examples=(
        ("preset=starter", "the embedded model on its held-out problems, without a GPU"),
        ("model=Qwen/Qwen3-1.7B data=[math_500,aime_2024]", "a model of the hub on two prepared sets"),
        ("'model={base:Qwen/Qwen3-4B,dasd:[runs/1,runs/2]}' data=aime_2024", "two methods, one with two seeds"),
        ("model=runs/dasd checkpoints=all data=[math_500,aime_2024]", "a run's checkpoints, and the best of them"),
        ("engine=openai base_url=http://localhost:8000/v1 model=<name> data=aime_2024", "a model that is served"),
    ),
    groups=("preset",),
    keys=(
        ("model=<path or name>", "a folder, hub name or run directory; a list; or {label:[…],…}"),
        ("data=<names or files>", "names of prepared sets, parquet files, or folders with test.parquet"),
        ("samples=16", "responses to each problem; 1 with temperature=0 is greedy"),
        ("temperature=1.0", "of sampling; top_p= and top_k= likewise"),
        ("max_tokens=8192", "of a response"),
        ("seeds=[1,2,3]", "each an evaluation of its own: mean and standard deviation over them"),
        ("limit=20", "only the first problems of each set, to try things out"),
        ("compare=[<directory>]", "earlier evaluations to compare with"),
        ("checkpoints=all", "of run directories: last | all | best; a curve over steps, and the best one"),
        ("selection=aime_2024", "with checkpoints=all: a set, or val for the run's own validation, that chooses"),
        ("teacher.context=solution", "each model also as its privileged teacher; teacher.exposures=[0.0,0.5,1.0]"),
        ("engine=vllm", "auto | vllm | transformers; workers= and vllm.* say on how many GPUs"),
        ("engine=openai base_url=<address>", "a server; model= is its name for what it serves, the key OPENAI_API_KEY"),
        ("hydra.run.dir=<directory>", "where results go; with the same one again the evaluation goes on"),
        ("dry_run=true", "check everything, print the plan, start nothing"),
    ),
    types={
        **dict.fromkeys(("limit", "workers", "samples", "max_tokens"), "whole"),
        **dict.fromkeys(("temperature", "top_p"), "number"),
        **dict.fromkeys(("base", "tokenizer", "prm", "base_url", "selection"), "text"),
    },
    more="Every key with what it means: config/evaluate.yaml; what is measured: recipes/evaluate/README.md.",
    not_started="This evaluation was not started:",
)


def evaluate_command(cfg: DictConfig, directory: Path, preset: str | None = None) -> int:
    """Check, evaluate and summarise.

    Args:
        cfg: the resolved configuration of config/evaluate.yaml.
        directory: where the evaluation writes.
        preset: name of the preset that the configuration was made from.

    Returns:
        The exit code: 0, 1 (failed), 2 (refused) or 130 (stopped).
    """
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

    from recipes.common.processes.failure import explain
    from recipes.common.processes.launch import output_into
    from recipes.common.record.run_dir import write_atomically
    from recipes.evaluate.console import EvaluationConsole
    from recipes.evaluate.results import Incidents
    from recipes.evaluate.run import evaluate
    from recipes.evaluate.server import ServerError
    from recipes.evaluate.summary import SUMMARY, summary_of, to_json

    incidents = Incidents()

    def summarise(status: str) -> dict[str, Any]:
        options = {"status": status, "preset": preset, "config": OmegaConf.to_container(cfg, resolve=True)}
        return summary_of(plan, cfg.prm, cfg.prm_threshold, incidents, **cast(Any, options))

    directory.mkdir(parents=True, exist_ok=True)
    began_at = (directory / LOG).stat().st_size if (directory / LOG).exists() else 0
    with output_into(directory / LOG) as terminal:
        console = EvaluationConsole(terminal)
        try:
            evaluate(cfg, plan, incidents, console)
            summary = summarise("failed" if incidents.failures else "done")
        except SettingsError as error:
            console.stopped(f"[bold red]refused[/]\n{escape(str(error))}", plan)
            return 2
        except KeyboardInterrupt:
            console.stopped("[yellow]stopped[/]", plan)
            _write_partial(directory, summarise, "stopped", console)
            return 130
        except ServerError as error:
            console.stopped(f"[bold red]failed[/] {escape(str(error))}", plan)
            _write_partial(directory, summarise, "failed", console)
            return 1
        except Exception as error:
            reason = f"{escape(explain(error, directory / LOG, began_at))}\ndetails: {escape(str(directory / LOG))}"
            console.stopped(f"[bold red]failed[/] {reason}", plan)
            _write_partial(directory, summarise, "failed", console)
            return 1
        write_atomically(directory / SUMMARY, to_json(summary))
        console.finished(summary, plan)
        _write_report(directory, console)
    return 1 if incidents.failures else 0


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
    try:
        from recipes.report.page import write_evaluation_report

        console.report(str(write_evaluation_report(directory)))
    except Exception as error:
        traceback.print_exc()  # into evaluate.log
        console.report(f"could not be written ({type(error).__name__}: {error}); details: {directory / LOG}")


def _job(cfg: DictConfig) -> int:
    hydra_config = HydraConfig.get()
    return evaluate_command(cfg, Path(hydra_config.runtime.output_dir), hydra_config.runtime.choices.get("preset"))


if __name__ == "__main__":
    run(COMMAND, _job, "evaluate")
