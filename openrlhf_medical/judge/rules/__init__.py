"""The rules of the ``reference`` backend: a note against its clean reference, with no model."""
