"""Conformance checks and fakes for users' own tests."""
