"""Distillation at the server on a public paired set. ``weights`` needs NumPy only."""
