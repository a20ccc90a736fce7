"""From a request to a problem that can be searched."""
