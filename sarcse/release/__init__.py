"""Releases: a trained model as one verified folder with its card, its upload to the Hub, and its Space."""
