"""Dynamo's frontend with a real vLLM worker behind it, on CPU and loopback."""
