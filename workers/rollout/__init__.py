"""Where responses come from: a server over transformers, its seeded generation, agent loops, and bursts of rollouts."""
