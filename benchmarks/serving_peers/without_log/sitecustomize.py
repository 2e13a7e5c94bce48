"""On ``PYTHONPATH``, this makes every process write no log of predictions, for measuring what the log costs."""

import importlib.abc
import importlib.machinery
import importlib.util
import sys


class _WithoutLog(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    NAME = "nbdeploy.log_writer"

    def find_spec(self, name, path, target=None):
        if name != self.NAME:
            return None
        self.found = importlib.machinery.PathFinder.find_spec(name, path, target)
        return importlib.util.spec_from_loader(name, self, origin=self.found.origin)

    def create_module(self, spec):
        return self.found.loader.create_module(spec)

    def exec_module(self, module):
        self.found.loader.exec_module(module)
        if not hasattr(module.LogWriter, "write_each"):
            msg = "the log is written by another function now: this switch has to follow"
            raise AttributeError(msg)
        module.LogWriter.write_each = lambda _self, entries: [True] * len(entries)


sys.meta_path.insert(0, _WithoutLog())
