"""Evaluation: sampling, grading, accuracy with intervals, reasoning health."""
