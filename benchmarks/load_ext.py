"""What ``%load_ext nbdeploy`` adds to an empty kernel: seconds, and the heavy modules it must not load."""

from __future__ import annotations

import statistics

from jupyter_client.manager import start_new_kernel

HEAVY = ["evidently", "papermill", "dask", "sklearn", "pandas", "bentoml", "ipywidgets", "anywidget"]
CELL = """
import sys, time
begun = time.perf_counter()
%load_ext nbdeploy
print(time.perf_counter() - begun, *[name for name in {heavy} if name in sys.modules])
"""
RUNS = 7


def main() -> None:
    seconds, loaded = [], set()
    for _ in range(RUNS):
        manager, client = start_new_kernel(kernel_name="python3")
        said: list[str] = []
        try:
            client.execute_interactive(
                CELL.format(heavy=HEAVY), timeout=60,
                output_hook=lambda message, said=said: said.append(message["content"].get("text", "")),
            )  # fmt: skip
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)
        words = "".join(said).split()
        seconds.append(float(words[0]))
        loaded |= set(words[1:])
    print(f"%load_ext nbdeploy: median {statistics.median(seconds):.3f} s of {RUNS} kernels (target: at most 0.3 s)")
    print(f"heavy modules that it loaded: {sorted(loaded) or 'none'}")


if __name__ == "__main__":
    main()
