"""Cohorts: who is in them, what was labeled by whom, and the samples cut from them."""
