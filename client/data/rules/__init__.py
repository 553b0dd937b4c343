"""What is checked of a site's records: one small function per rule, listed in ``check.RULES``."""
