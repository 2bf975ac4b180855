"""A workspace as one page: each file reads one part of it and gives sections."""
