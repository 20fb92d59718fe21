"""Text: reading files, sentences, graded pairs, token ids and how often they occur."""
