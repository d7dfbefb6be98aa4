"""Figures of speed and memory. Tests never measure time; this does, as ratios taken in one run."""
