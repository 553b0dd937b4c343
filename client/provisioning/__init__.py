"""A site's side of a consortium: its keys, and what it knows of the others."""
