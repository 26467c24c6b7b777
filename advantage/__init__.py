"""Token-level advantage estimators for self-distillation: pure functions on padded (B, T) tensors.

Importing this package registers every estimator that has a module here, and does not import verl.
`import advantage.register` enters the estimators into verl's registry. `examples/dasd_in_torch.py` and
`examples/dasd_in_verl.py` show both uses whole.
"""

import importlib
import pkgutil

from advantage.checks import NonFiniteSignalError
from advantage.estimators import (
    Credit,
    CreditInputs,
    correction_warning,
    equal_reward_rows,
    estimator,
    params_from_config,
    required_signals,
    run_estimator,
)
from advantage.signals import MissingSignalError, Signals, TokenSignals, current_signals, token_signals

# A new method is one more module in this folder: found here, not listed. `register` is the one that imports verl.
for _module in pkgutil.iter_modules(__path__):
    if _module.name != "register":
        importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "Credit",
    "CreditInputs",
    "MissingSignalError",
    "NonFiniteSignalError",
    "Signals",
    "TokenSignals",
    "correction_warning",
    "current_signals",
    "equal_reward_rows",
    "estimator",
    "params_from_config",
    "required_signals",
    "run_estimator",
    "token_signals",
]
