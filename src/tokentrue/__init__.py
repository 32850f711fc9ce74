"""Exact tokens between agents, inference engines and trainers."""
