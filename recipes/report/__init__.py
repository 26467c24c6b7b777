"""One page for each run, and one that compares runs; see README.md."""
