"""Hashtags: counted, fitted, and made into a vocabulary of labels."""
