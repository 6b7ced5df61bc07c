"""The shared training room: a config, a loss contract, and one runner over ``transformers.Trainer``."""
