"""A site: what an institution installs, and the only code that sees a record."""
