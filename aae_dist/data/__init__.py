"""WebDataset shards in, global batches out."""
