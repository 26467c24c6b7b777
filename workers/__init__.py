"""What runs in verl's workers: rollouts, training with a teacher, attention, divergences, and support for CPUs."""
