"""Trials of settings, and what is known of them."""
