"""A small real language model that runs in this process."""
