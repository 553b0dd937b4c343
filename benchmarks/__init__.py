"""Benchmarks: one command each, side by side in one run, ratios as the result.

``python -m benchmarks.plain_loop`` and its neighbours print a table and write JSON;
``docs/performance.md`` says what each of them compares. The records are random: this is about
what training costs, never about what it learns.
"""
