"""A run: its plan, its folder, its results."""
