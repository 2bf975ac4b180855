"""A workspace: its settings, where everything in it is, and what its runs record."""
