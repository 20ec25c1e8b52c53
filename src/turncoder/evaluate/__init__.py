"""Scores of encoders on sentences, and of word counts beside them."""
