"""Loop: a self-hostable payment routing platform in one package."""

from importlib.metadata import version

__version__ = version("loop")
