"""Archives as they lie in storage: manifests, addresses, tar headers, and samples by number."""
