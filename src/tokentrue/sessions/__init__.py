"""Conversations as trees of turns, and the one decision how a prompt is made."""
