"""Does a reply depend on its prompt? Measured with a language model in forward passes, without decoding."""
