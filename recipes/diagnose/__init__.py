"""Diagnostics from the papers, as commands: what the privileged teacher says, where, and whether it can be trusted."""
