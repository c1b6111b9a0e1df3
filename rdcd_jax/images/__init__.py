"""Images in: sources, archives, records, decoding, packing, checking."""
