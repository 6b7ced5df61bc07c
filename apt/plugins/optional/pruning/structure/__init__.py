"""Smaller sizes: which are legal, what they cost, which lose least, and the cut with its repair."""
