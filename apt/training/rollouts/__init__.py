"""Backends that write what follows prompts: each a class ``Backend(options, resources)``."""
