"""Measurements that back the claims of the documentation; each prints a table and the machine it ran on."""
