"""Writes one HTML page for each run and each evaluation, and one that compares runs; see README.md."""
