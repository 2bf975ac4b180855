"""Sweeps over noise, sampling and K."""
