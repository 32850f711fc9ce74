"""Clients that turn messages into exact tokens and back."""
