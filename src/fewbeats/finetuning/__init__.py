"""Supervised tasks: a network, its labels, and how it is trained on them."""
