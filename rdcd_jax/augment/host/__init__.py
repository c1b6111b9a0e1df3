"""A policy's operations on Pillow images and NumPy arrays."""
