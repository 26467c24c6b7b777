"""What `dry_run=true` prints: the plan of a run, its batch arithmetic, memory for each GPU and time for each stage."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from recipes.common.method import Method
from recipes.common.plan import memory as planner
from recipes.common.plan.memory import GIB, Job
from recipes.common.record.console import duration, plan, two_columns


def show(cfg: DictConfig, method: Method, *, computable: bool = True) -> None:
    """Print what a resolved configuration would do; nothing is started and nothing refused.

    Args:
        cfg: the resolved configuration.
        method: what it asks to learn, read from it.
        computable: whether its values can be computed with; if not, the plan is shown as given, without the forecast.
    """
    console = Console(highlight=False)
    console.print(plan(cfg, method, Path(cfg.self_distill.run_dir)))
    if not computable:
        return
    job = planner.job_of(cfg, method, planner.gpu_of(cfg))
    if job is None:
        console.print(
            f"the shape of {cfg.actor_rollout_ref.model.path} is not known here: memory and time are not planned"
        )
        return
    console.print(arithmetic(job, cfg.trainer.total_training_steps))
    unit, size = ("GiB", GIB) if job.model.parameters > 1e8 else ("MiB", 1 << 20)
    on = f"{job.gpu.name} of {job.gpu.memory / GIB:.1f} GiB" if job.gpu else "worker"
    console.print(f"\n[bold]memory[/] on each {on}, in {unit}")
    console.print(memory_table(job, size))
    if job.gpu is not None:
        console.print(
            "\n[bold]time[/] of a step in which every sequence reaches its limit; a roofline, not a measurement, at "
            f"{planner.PRODUCT_EFFICIENCY:.0%} of the peak of products and {planner.READ_EFFICIENCY:.0%} of reads"
        )
        console.print(time_table(job))


def arithmetic(job: Job, steps: int | None) -> Table:
    """Batch, tokens, cache and checkpoint as a table of two columns: what it is, and its numbers in a sentence.

    Args:
        job: the run that is planned.
        steps: training steps of the whole run; None where only the epochs are given.
    """
    table = two_columns()
    m = job.model
    trained = f"{m.parameters / 1e6:,.1f} M parameters"
    if job.lora_rank:
        trained += f", of which none is trained; adapter of rank {job.lora_rank}: {job.trainable / 1e6:,.1f} M"
    table.add_row("shape", f"{trained}; {m.layers} layers of width {m.hidden}, vocabulary {m.vocab:,}")
    table.add_row(
        "batch",
        f"{job.batch} × {job.rollouts} = {job.sequences} sequences, {job.sequences / job.workers:g} a worker; "
        f"{job.batch // job.mini_batch} update{'s' * (job.batch > job.mini_batch)} of "
        f"{job.mini_batch} × {job.rollouts} = {job.mini_batch * job.rollouts}",
    )
    tokens, sequences = planner.micro_batch(job, job.token_budget, job.longest)
    table.add_row("micro-batch", f"at most {tokens:,} tokens: {sequences} of the longest sequences ({job.longest:,})")
    counted = f"at most {job.sequences * job.sequence / 1e6:,.2f} M a step for the student"
    if job.scored or job.divergence:
        counted += f", {job.sequences * job.teacher_sequence / 1e6:,.2f} M for the teacher"
    table.add_row("tokens", counted + (f"; {steps} steps" if steps else ""))
    if job.gpu is not None:
        held = planner.cache_tokens(job)
        table.add_row(
            "cache",
            f"{held:,} tokens a rollout server: {held // job.sequence} full sequences at once, of "
            f"{job.sequences * job.tensor_parallel / job.workers:g} that it gets",
        )
    table.add_row("checkpoint", f"{planner.checkpoint_bytes(job) / GIB:,.2f} GiB")
    return table


def memory_table(job: Job, unit: int = GIB) -> Table:
    """Memory of a GPU as a table: a column for each phase of a step, a row for each thing that lies in memory then.

    Args:
        job: the run that is planned.
        unit: bytes that a printed 1.0 stands for.
    """
    phases = planner.memory(job)
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    for phase in phases:
        table.add_column(phase, justify="right")
    for name in dict.fromkeys(name for parts in phases.values() for name in parts):
        cells = [parts.get(name) for parts in phases.values()]
        if any(cells):
            table.add_row(name, *(f"{value / unit:.1f}" if value else "" for value in cells))
    totals = [sum(parts.values()) for parts in phases.values()]
    table.add_row("total", *(_total(job, total, unit) for total in totals), style="bold")
    return table


def _total(job: Job, total: float, unit: int) -> str:
    too_much = job.gpu is not None and total > job.gpu.memory
    return f"[red]{total / unit:.1f}, too much[/]" if too_much else f"{total / unit:.1f}"


def time_table(job: Job) -> Table:
    """Stages of a step and their seconds, if every sequence reaches its limit."""
    stages = planner.seconds(job)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    for stage, value in stages.items():
        table.add_row(stage, _rounded(value))
    table.add_row("step", _rounded(sum(stages.values())), style="bold")
    return table


def _rounded(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)
