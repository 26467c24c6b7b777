"""The command line of every method: `recipes/<method>/main.py` calls `main("<method>")` and nothing else.

The method's name becomes the Hydra override ``method=<name>``, so ``config/method/<name>.yaml`` is the bundle, and all
of Hydra works as usual: overrides, ``--cfg job``, ``-m`` for sweeps, ``hydra.run.dir=`` to choose or resume a run
directory. A method without a main of its own starts with ``python -m recipes.entry method=<name>``.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from config import CONFIG_DIR
from recipes.command_line import Command, run
from recipes.common.paths import make_absolute

# What a command line may still say, and what it is called now.
RENAMED = {
    "method=atesd_ppo": "method=atesd_sampled",
    "method=pw_opsd_ppo": "method=pw_opsd_sampled",
    # The settings of the exposure controller have a node of their own.
    **{
        f"self_distill.exposure.{key}": f"self_distill.exposure.controller.{key}"
        for key in OmegaConf.load(CONFIG_DIR / "train.yaml").self_distill.exposure.controller
    },
}
KEYS = (
    ("experiment=starter", "on what and where; starter needs no GPU and no network"),
    ("hardware=4xh100", "the machine that is planned for (config/hardware)"),
    ("actor_rollout_ref.model.path=<folder>", "the model: a Hugging Face folder or hub name"),
    ("data.train_files=<file>", "prepared problems (python -m recipes.data.prepare); data.val_files to validate"),
    ("trainer.total_training_steps=100", "updates"),
    ("data.train_batch_size=128", "problems a step; actor_rollout_ref.actor.ppo_mini_batch_size divides it"),
    ("actor_rollout_ref.rollout.n=8", "rollouts of each problem"),
    ("actor_rollout_ref.actor.optim.lr=3e-6", "learning rate"),
    ("data.max_response_length=8192", "tokens of a response"),
    ("trainer.test_freq=10", "steps from one validation to the next; trainer.save_freq likewise; -1: none"),
    ("hydra.run.dir=<directory>", "where the run writes; with the same one again it is resumed"),
    ("dry_run=true", "check everything, print the plan with memory and time, start nothing"),
)


def command_of(method: str | None, groups: dict[str, str]) -> Command:
    """What the command line of a method says of itself.

    Args:
        method: the method's name; None for the command line that takes any.
        groups: configuration group -> the choice that is made if the user makes none.
    """
    experiment = "experiment=starter"
    any_method = "method=dasd " if method is None else ""
    what = "Train with the method that method= names: its teacher, credit and loss."
    module = "recipes.entry"
    if method is not None:
        from recipes.common.method import shipped

        about = next(about for about in shipped() if about.name == method)
        paper = f" (arXiv {about.paper['arxiv']})" if "arxiv" in about.paper else ""
        what = f"Train with {about.title}{paper}: {about.description}."
        module = f"recipes.{method}.main"
        default = groups.get("experiment", "qwen3_1_7b_dapo")
        what += f" Without an experiment it is {default}, which needs GPUs."
    return Command(
        module=module,
        what=what,
        examples=(
            (f"{any_method}{experiment}", "train the embedded model, without a GPU"),
            (
                f"{any_method}experiment=qwen3_8b_dapo hardware=4xh100 dry_run=true",
                "what would run, and whether it fits",
            ),
            (f"{any_method}{experiment} hydra.run.dir=outputs/mine", "choose the directory; once more: resume"),
            (
                f"{any_method}{experiment} -m actor_rollout_ref.actor.optim.lr=3e-5,5e-5",
                "a sweep, a directory for each job",
            ),
            (f"{any_method}{experiment} --cfg job", "print the configuration and end"),
        ),
        groups=("method", "experiment"),
        keys=KEYS,
        checks_types=False,  # by `recipes.common.checks`, with their ranges
        may_lack=("reward.reward_model.",),  # verl's, and not used
        more=(
            "Every key with what it means: config/train.yaml; those of a method: config/method/<name>.yaml; verl's keep"
            " their names. What a method does: recipes/<method>/README.md. Hydra's options (--cfg job, --info, "
            "-m, --config-dir) work wherever they stand; --hydra-help lists them."
        ),
        not_started="This configuration was not started:",
    )


def main(method: str | None = None, **groups: str) -> None:
    """Run the command line of a method, and exit with its code.

    0 is done, 1 failed, 2 refused, 3 ended because it collapsed, 130 stopped.

    Args:
        method: the bundle for a command line that names none; None if it has to name one.
        groups: other choices, such as the paper's experiment, for what the command line leaves open.
    """
    choices = {"method": method, **groups}
    run(
        command_of(method, groups),
        _job,
        "train",
        defaults=[f"{group}={choice}" for group, choice in choices.items() if choice],
        renamed=RENAMED,
    )


def _job(cfg: DictConfig) -> int:
    from recipes.common import method as methods
    from recipes.common.checks import check, values
    from recipes.common.checks.machine import count_gpus

    resolved = resolve(cfg)
    method = methods.read(resolved)
    if cfg.dry_run:  # shown first: the numbers help with what is wrong
        from recipes.common.plan.forecast import show

        show(resolved, method, computable=not any(values.problems(resolved)))
    for warning in check(resolved, method, gpus=count_gpus()):
        print(f"warning: {warning}")
    if cfg.dry_run:
        return 0
    from recipes.common.processes.launch import launch

    return launch(resolved, method, report=report)


def resolve(cfg: DictConfig) -> DictConfig:
    """A copy without interpolations and relative paths.

    Ray's processes have neither Hydra's resolvers nor this folder as their own.
    """
    resolved = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False))
    resolved.self_distill.run_dir = str(Path(resolved.self_distill.run_dir).resolve())
    resolved.trainer.default_local_dir = f"{resolved.self_distill.run_dir}/checkpoints"
    rollout = resolved.actor_rollout_ref.rollout
    teacher = resolved.self_distill.teacher
    prompts = [resolved.data.max_prompt_length, *([teacher.max_prompt_length] if teacher.test_freq != -1 else [])]
    lengths = [*prompts, resolved.data.max_response_length]
    # Of null verl makes the model's maximum, and vLLM then wants a cache that holds one such sequence.
    if rollout.max_model_len is None and all(isinstance(length, int) for length in lengths):
        rollout.max_model_len = max(prompts) + resolved.data.max_response_length
    make_absolute(resolved)
    OmegaConf.set_struct(resolved, True)
    return resolved


def report(run_dir: Path) -> str | None:
    """Write a run's report.

    Args:
        run_dir: the run directory.

    Returns:
        The report's path; None if the run ended before its first step.
    """
    from recipes.report.page import write_report
    from recipes.report.run_data import NotARun

    try:
        return str(write_report(run_dir))
    except NotARun:
        return None


if __name__ == "__main__":
    main()
