"""A real IPython kernel, as a notebook has one: cells go in, what they print comes out."""

from __future__ import annotations

import os
import re
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty
from typing import Any


class CellError(AssertionError):
    """A cell raised. Its text is the traceback without colours."""


class Kernel:
    """A running kernel.

    Attributes
    ----------
    pid : int
        Of the kernel's process.
    """

    def __init__(self, client: Any, pid: int) -> None:
        self._client = client
        self.pid = pid

    def run(self, code: str, timeout: float = 180) -> str:
        """Run one cell and return what it printed and, as text, what it showed.

        Raises
        ------
        CellError
            The cell raised.
        """
        deadline = time.monotonic() + timeout
        asked = self._client.execute(textwrap.dedent(code), allow_stdin=False)
        said, error = [], ""
        while True:
            try:
                message = self._client.get_iopub_msg(timeout=1)
            except Empty:
                if time.monotonic() > deadline:
                    msg = f"the cell did not end within {timeout:g} s:\n{code}\nIt printed:\n{''.join(said)}"
                    raise TimeoutError(msg) from None
                continue
            if message["parent_header"].get("msg_id") != asked:
                continue
            content = message["content"]
            if message["msg_type"] == "stream" and content["name"] == "stdout":
                said.append(content["text"])
            elif message["msg_type"] in ("execute_result", "display_data"):
                said.append(content["data"].get("text/plain", "") + "\n")
            elif message["msg_type"] == "error":
                error = re.sub(r"\x1b\[[\d;]*m", "", "\n".join(content["traceback"]))
            elif message["msg_type"] == "status" and content["execution_state"] == "idle":
                break
        if error:
            raise CellError(error)
        return "".join(said)


@contextmanager
def kernel(folder: Path) -> Iterator[Kernel]:
    """A new kernel with this process' environment, working in `folder`; it is shut down after the block."""
    from jupyter_client.manager import KernelManager

    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(folder), env=dict(os.environ))
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        yield Kernel(client, manager.provisioner.pid)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()
