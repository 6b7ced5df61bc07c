"""Data components: each a function or class ``(options, resources) -> RowSource | RowStream``."""
