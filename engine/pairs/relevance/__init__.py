"""Does a reply depend on its prompt? Measured by a language model, which reads and decodes nothing."""
