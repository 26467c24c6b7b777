"""What is refused before anything starts: each check yields sentences that state the value, the rule and the fix."""
