"""Talking to people: output, progress, errors. Nothing else in the package prints."""
