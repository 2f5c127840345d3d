"""Copies of remote shards on this node, and decoded samples in shared memory."""
