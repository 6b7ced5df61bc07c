"""Plugins that belong to the main line: getting models in, out and safe."""
