"""Verifiable rewards: mathematics, multiple choice, programs, Knights & Knaves, and the mix of reward components.

Free of imports on purpose: a grading child imports this package and must start in half a second.
"""
