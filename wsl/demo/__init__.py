"""The whole pipeline on the carried data (`run`), and a workspace as one page (`page`)."""
