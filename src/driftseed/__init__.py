"""Driftseed: secure peer-to-peer software updates for fleets of edge devices that nobody can dial."""

__version__ = "0.1.0"
