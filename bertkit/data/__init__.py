"""Rows from files, and rows as batches."""
