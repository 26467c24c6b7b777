"""What a configuration will need, computed from shapes before anything starts: memory of each phase, work, time."""
