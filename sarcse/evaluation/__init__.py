"""Embeddings, their scores and differences, and the figures."""
