"""Public preference sets and other tools' files, one module a format."""
