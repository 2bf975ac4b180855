"""The whole pipeline on the bundled data (`run`), and a workspace as one page (`page`)."""
