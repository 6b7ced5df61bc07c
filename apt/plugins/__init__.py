"""The plugin host: what a plugin is, where plugins come from, and how a broken one hurts nobody but itself."""
