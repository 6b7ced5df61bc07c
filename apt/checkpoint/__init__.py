"""A model on disk: header-only reading, atomic writing with lineage, architecture descriptors."""
