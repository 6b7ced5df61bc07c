"""The library behind the command ``apt_model``; importing it imports nothing else."""

__version__ = "0.1.0"
