"""Beating hearts with known truth: anatomy, surroundings, images, cohorts."""
