"""Whatever samples tokens, behind one protocol."""
