"""A template and notes for plugins by others; what users write themselves lies in their own plugin directory."""
