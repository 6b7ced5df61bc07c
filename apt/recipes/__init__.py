"""Recipes: experiments as YAML, their steps chained by name, and the engine that runs what is not yet done."""
