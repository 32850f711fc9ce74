"""Grammars of tool calls and reasoning in completions."""
