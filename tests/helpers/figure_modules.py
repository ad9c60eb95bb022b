"""A figure's module by its name."""

from importlib import import_module


def figure(name):
    return import_module(f"ntkprobe.figures.{name}")
