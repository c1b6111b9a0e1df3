"""RDCD and SSCD in pure JAX: compact descriptors for image copy detection."""

__version__ = "0.1.0"
