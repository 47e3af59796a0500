"""Pretraining: the step, the loop around it, its state on the devices and on the disk."""
