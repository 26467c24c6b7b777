"""`python -m recipes.export.main checkpoint=<…> out=<…>`: a checkpoint as a Hugging Face folder; config/export.yaml.

Exits with 0, 1 (failed), 2 (refused) or 130 (stopped); if it is not 0, there is nothing under the name of `out`.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig

from recipes.command_line import Command, run
from recipes.common.checks.errors import SettingsError

COMMAND = Command(
    module="recipes.export.main",
    what=(
        "Write a checkpoint as a folder that transformers and vLLM load and the hub accepts: weights, tokenizer, model "
        "card, configuration. An adapter is merged into its base unless it is asked for alone."
    ),
    examples=(
        ("checkpoint=outputs/starter/dasd/<run> out=models/mine", "a run's last complete checkpoint"),
        ("checkpoint=outputs/…/checkpoints/global_step_20 out=models/step-20", "one of its checkpoints"),
        ("checkpoint=outputs/…/opsd/<run> out=models/adapter adapter_only=true", "only the LoRA adapter"),
        ("checkpoint=<adapter> base=models/qwen3-4b out=models/merged", "an adapter over a base that lies elsewhere"),
        ("checkpoint=<run> out=models/mine base_name=Qwen/Qwen3-1.7B", "the base's name on the hub, for the card"),
    ),
    keys=(
        ("checkpoint=<path>", "a run directory, a checkpoint of it, or the folder of a PEFT adapter"),
        ("out=<folder>", "must not exist yet, or be empty; its name is the model's"),
        ("adapter_only=true", "only the LoRA adapter, as PEFT and vLLM read it"),
        ("base=<path or name>", "base model of an adapter, instead of the one that it names"),
        ("base_name=<hub name>", "of the model that was trained, for the card"),
        ("tokenizer=<path or name>", "tokenizer and chat template, instead of the checkpoint's"),
    ),
    types=dict.fromkeys(("base", "base_name", "tokenizer"), "text"),
    more="Every key with what it means: config/export.yaml; what the folder holds: recipes/export/README.md.",
    not_started="This export was not started:",
)


def export_command(cfg: DictConfig) -> int:
    """Check, merge and write.

    Args:
        cfg: config/export.yaml with the user's choices.

    Returns:
        The exit code; see the module's text.
    """
    from recipes.common.processes.failure import root_cause
    from recipes.common.processes.launch import output_into
    from recipes.export.console import show_plan, show_result
    from recipes.export.write import export, make_plan

    try:
        plan = make_plan(cfg)
    except SettingsError as error:
        print(f"This export was not started:\n{error}", file=sys.stderr)
        return 2
    show_plan(plan)
    with tempfile.TemporaryDirectory(prefix="export-") as place, _terminated_like_interrupted():
        log = Path(place) / "log"
        try:
            with output_into(log):  # the merger's messages, which only a failure makes interesting
                export(plan)
        except KeyboardInterrupt:
            print("stopped; nothing was written", file=sys.stderr)
            return 130
        except SettingsError as error:
            print(f"refused; nothing was written:\n{error}", file=sys.stderr)
            return 2
        except Exception as error:
            print(log.read_text(errors="replace"), file=sys.stderr)
            traceback.print_exc()
            print(f"failed; nothing was written: {root_cause(error)}", file=sys.stderr)
            return 1
    show_result(plan)
    return 0


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM, which a scheduler sends, cleans up as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    run(COMMAND, export_command, "export")
