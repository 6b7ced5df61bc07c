"""The library behind the command ``apt_model``; importing it imports nothing else."""
