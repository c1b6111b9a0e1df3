"""Edited views of images: policies as data, carried out by the host or by the device."""
