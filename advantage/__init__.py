"""Token-level advantage estimators for self-distillation: pure functions on padded (B, T) tensors.

Importing this package does not import verl. `import advantage.register` enters the estimators into verl's registry.
"""

from advantage import atesd, dasd, hepo, opsd, pw_opsd, reopold, rlsd
from advantage.checks import NonFiniteSignalError
from advantage.estimators import (
    Credit,
    CreditInputs,
    MissingSignalError,
    correction_warning,
    estimator,
    params_from_config,
    required_signals,
    run_estimator,
)
from advantage.signals import TokenSignals, current_signals, token_signals

__all__ = [
    "Credit",
    "CreditInputs",
    "MissingSignalError",
    "NonFiniteSignalError",
    "TokenSignals",
    "atesd",
    "correction_warning",
    "current_signals",
    "dasd",
    "estimator",
    "hepo",
    "opsd",
    "params_from_config",
    "pw_opsd",
    "reopold",
    "required_signals",
    "rlsd",
    "run_estimator",
    "token_signals",
]
