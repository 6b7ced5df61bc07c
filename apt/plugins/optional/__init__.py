"""Plugins for one purpose each; they ship with the package and may need libraries of their own."""
