"""Bytes of a sample to a row of the batch and a label."""
