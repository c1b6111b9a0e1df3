"""DISC2021, NDEC and Copydays: ground truth, metrics, protocols, records of what was measured."""
