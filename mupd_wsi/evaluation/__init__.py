"""Measuring stains against the real thing."""
