"""``consilia client check``: before a site takes part, whether it will work and what it costs."""
