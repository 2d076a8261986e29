"""`nexus ai agent …`: one module for each group of commands that belong together."""
