"""Finished runs side by side, and the intervals of their figures; no torch."""
