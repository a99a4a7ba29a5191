"""Engines that sample steps. Import the module of the engine that you need."""
