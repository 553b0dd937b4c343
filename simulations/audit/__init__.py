"""Attacks on what a run trained, and what follows from them; one file per attack."""
