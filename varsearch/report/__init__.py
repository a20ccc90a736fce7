"""A finished run as one HTML page, and a policy as pictures."""
