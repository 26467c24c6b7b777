"""What the terminal shows of an export: what will be done, and what is there afterwards."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from recipes.common.record.console import two_columns
from recipes.export.card import base_of
from recipes.export.write import Plan, leftovers, size_text


def show_plan(plan: Plan) -> None:
    """The checkpoint, the model it was trained from, and what will be written."""
    table = two_columns()
    located, contents = plan.located, plan.contents
    step = "" if located.step is None else f"step {located.step}, "
    if contents is None:
        table.add_row("checkpoint", f"{escape(located.name)}  (PEFT adapter)")
    else:
        lora = ", LoRA" if contents.adapter_elements else ""
        workers = f"{contents.workers} worker{'s' * (contents.workers > 1)}"
        table.add_row("checkpoint", f"{escape(located.name)}  ({step}shards of {workers}{lora})")
    base = base_of(located, plan.run, plan.base_name)
    hint = "" if base.hub else "  (no name on the hub: set base_name= if it has one)"
    table.add_row("trained from", f"{escape(base.shown)}{hint}")
    table.add_row("writes", "the adapter alone" if plan.adapter_only else "merged weights")
    if plan.run is None:
        table.add_row("card", "[yellow]without the training[/]: no run directory with config.yaml around it")
    _console().print(table)
    left = ", ".join(escape(path.name) for path in leftovers(plan))
    if left:
        _console().print(
            f"[yellow]note[/] an export was killed here, or goes on: {left}; delete what nothing writes to"
        )


def show_result(plan: Plan) -> None:
    """What was written, and the commands that come next."""
    table = two_columns()
    sizes = [f.stat().st_size for f in plan.out.iterdir()]
    table.add_row("written", f"{escape(str(plan.out))}  ({len(sizes)} files, {size_text(sum(sizes))})")
    if plan.adapter_only:
        table.add_row("serve", "vllm serve <base model> --enable-lora …; README.md has the line")
    else:
        table.add_row("serve", f"vllm serve {escape(str(plan.out))}")
    table.add_row("upload", f"hf upload <you>/{escape(plan.out.name)} {escape(str(plan.out))}")
    _console().print(table)


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=200)
