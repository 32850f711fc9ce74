"""vLLM on CPU and loopback, serving a model folder in single precision."""
