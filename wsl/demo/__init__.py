"""The whole pipeline on the carried data."""
