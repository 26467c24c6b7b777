"""What people run: methods, data, evaluation, reports; see README.md of the repository."""

from recipes import _shadowed

_shadowed.refuse()
