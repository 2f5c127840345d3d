"""Samples counted and checked: manifests written, data sets verified."""
