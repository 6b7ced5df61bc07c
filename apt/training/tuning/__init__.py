"""What is trained: each a class ``Tuning(options, resources)`` by the contract of ``Tuning``."""
