"""Converts texts to documents of token ids; finds words, parts of speech and pictures in them."""
