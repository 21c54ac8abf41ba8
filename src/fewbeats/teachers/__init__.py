"""Labelers from outside: other people's masks, networks and programs, one a file."""
