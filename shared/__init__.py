"""What a site and the coordinator agree on; imports neither of them."""
