"""Which sample comes when, and which shard is needed when."""
