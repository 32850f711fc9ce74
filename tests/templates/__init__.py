"""Templates of every argument grammar, written for these tests, and the messages to try them with."""
