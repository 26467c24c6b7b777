"""What the teacher is shown and what it says: prompts, references and their exposure, sequences, scores, the probe."""
