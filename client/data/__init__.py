"""A site's records: find them, check them, describe them, load them."""
