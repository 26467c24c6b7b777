"""Verifiable rewards for mathematics: extraction, comparison in killable children, and the mix of reward components.

Kept free of imports on purpose: a grading child imports this package and must start in half a second.
"""
