"""Images to descriptors: streams, resumable parts, descriptor files, whitening, codecs."""
