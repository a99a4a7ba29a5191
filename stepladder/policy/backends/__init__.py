"""Engines that sample steps; import the module of the one that you want."""
