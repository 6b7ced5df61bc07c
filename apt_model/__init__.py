"""The command ``apt_model``. The library lies in :mod:`apt`; importing this package imports nothing else."""

__version__ = "0.1.0"
