"""Texts in, vectors out: any encoder opened with one call, files encoded in shards, one vector per word."""
