"""What is refused before anything starts: each check yields sentences that state the value, the rule and the fix.

None of them starts a process, and verl is imported only where a name asks for it: a mistake costs a second and not a
minute.
"""

from __future__ import annotations

from omegaconf import DictConfig

from recipes.common.checks import batch, data, learning, machine, measured, model, reward, values
from recipes.common.checks.errors import SettingsError
from recipes.common.method import Method

CHECKS = (
    learning.parameters,
    learning.collapse,
    learning.teacher,
    learning.teacher_validation,
    learning.groups,
    learning.responses,
    learning.distillation,
    learning.exposure,
    learning.precision,
    learning.schedule,
    measured.measured,
    batch.batches,
    batch.lengths,
    batch.rollout,
    batch.logical_cpus,
    model.model,
    data.data,
    reward.reward,
    machine.parallelism,
    machine.software,
    machine.logging,
    machine.capacity,
    machine.output,
)

# What may be meant, and is said.
WARNINGS = (learning.too_short_to_learn, learning.two_denominators, learning.cut_siblings)


def check(cfg: DictConfig, method: Method, *, gpus: int) -> list[str]:
    """Refuse a resolved configuration with everything that is wrong with it.

    Args:
        cfg: the resolved configuration.
        method: what it asks to learn, read from it (`recipes.common.method.read`).
        gpus: number of GPUs in this machine.

    Returns:
        Warnings: sentences about what may be meant.

    Raises:
        SettingsError: if anything is wrong; it lists every problem found.
    """
    problems = list(machine.device(cfg, gpus))
    if problems:  # on the wrong machine nothing else matters
        raise SettingsError(problems)
    problems += (problem for _, problem in values.problems(cfg))
    for part in CHECKS:
        try:
            problems += part(cfg, method)
        except Exception:
            if not problems:  # else it is a value that was said to be wrong, and that this cannot compute with
                raise
    if problems:
        raise SettingsError(list(dict.fromkeys(problems)))
    return [warning for part in WARNINGS for warning in part(cfg, method)]
