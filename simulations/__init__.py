"""Federations on one machine: phantoms, the in-process grid, baselines, report, command line."""
