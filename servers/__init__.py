"""Small set-ups of real engines on loopback: for this repository's tests, and for a user who wants to try one."""
