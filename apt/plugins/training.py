"""The operation ``train`` as a recipe's step: a run with the components of all plugins."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apt.training.job import TrainOptions
    from apt.training.report import TrainReport


def train(options: "TrainOptions") -> "TrainReport":
    """Train a model by its config; see :func:`apt.training.job.train`."""
    from apt.plugins import host
    from apt.training import job

    return job.train(options, host.registry())
