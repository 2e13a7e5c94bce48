"""From a fitted model in a notebook to a live, checked, watched service.

The names below are loaded when they are first used, so that importing nbdeploy costs next to nothing.
Their one list is ``__init__.pyi``.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def load_ipython_extension(shell: object) -> None:
    """``%load_ext nbdeploy``."""
    from nbdeploy import magic

    magic.load(shell)


def unload_ipython_extension(shell: object) -> None:
    """``%unload_ext nbdeploy``."""
    from nbdeploy import magic

    magic.unload(shell)
