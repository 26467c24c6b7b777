"""Where responses come from: the server over transformers, its seeded generation, and verl's agent loop with seeds."""
