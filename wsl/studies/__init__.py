"""Studies: a grid of pipelines over the same data, run once each, drawn and tabulated."""
