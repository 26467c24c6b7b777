"""`python -m recipes.export.main checkpoint=<…> out=<…>`: a checkpoint as a Hugging Face folder; config/export.yaml.

Exits with 0, 1 (failed), 2 (refused) or 130 (stopped); whatever is not 0 leaves nothing under the name of `out`.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
from omegaconf import DictConfig

from config import CONFIG_DIR
from recipes.common.checks.errors import SettingsError


def export_command(cfg: DictConfig) -> int:
    """Check, merge, write; returns the exit code."""
    from recipes.common.processes.launch import output_into, root_cause
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


def _job(cfg: DictConfig) -> None:
    code = export_command(cfg)
    if code:
        sys.exit(code)


if __name__ == "__main__":
    hydra.main(config_path=str(CONFIG_DIR), config_name="export", version_base="1.3")(_job)()
