"""A workspace as one page."""
