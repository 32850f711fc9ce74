"""Environments, the runner that plays them, and the record it writes."""
