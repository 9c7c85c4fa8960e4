"""Differences between table, kernel and cloud, and the remedy for each."""
