"""One training step in verl's order: the trainer, the token signals, broken numbers, validation."""
