"""What a training run is made of, from what a configuration asks to learn to the files that a run leaves."""
