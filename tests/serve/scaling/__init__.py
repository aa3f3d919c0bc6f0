"""A paced cluster whose pools are scaled by the real Serve controller."""
