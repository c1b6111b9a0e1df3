"""Pictures in: sources, decoding, augmentation policies and the batches a training run reads."""
