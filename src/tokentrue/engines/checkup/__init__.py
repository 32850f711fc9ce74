"""What a live endpoint can do, found out by asking it a few small questions."""
