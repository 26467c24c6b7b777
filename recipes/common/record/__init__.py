"""What a run leaves on disk and shows: the run directory with its metrics, checkpoints and samples, and the console."""
