"""Texts as documents of token ids; words, parts of speech and pictures in them."""
