"""The coordinator's side of a consortium: its keys, its roster, its sites' kits, its gateway."""
