"""Teachers: each a class ``Teacher(options, resources)`` that gives the targets of distillation."""
