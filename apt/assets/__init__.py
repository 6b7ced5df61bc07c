"""Files shipped with the package: the embedded model ``tiny`` and its frozen held-out text."""
