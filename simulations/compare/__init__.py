"""``consilia compare``: rules and personalizations side by side, on the same data and seeds.

names → plan → runs → scores → table → files. Everything but ``run`` is a pure function, so that
what was run decides what is printed.
"""
