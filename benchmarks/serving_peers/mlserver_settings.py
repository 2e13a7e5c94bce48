"""Settings of MLServer for one model: ``python mlserver_settings.py MODEL PLACE PORTS BATCH``.

One worker, its default. ``BATCH`` is 0 (its default, no adaptive batching) or the number of requests in a batch, with
10 ms to wait for company. Of size and time 32 and 1 ms, 32 and 10 ms, 10 and 100 ms, 32 and 500 ms, 64 and 5 ms, 100 and
1 ms, that pair gave the pipeline the most requests a second with 32 clients (750 to 1,030).
"""

import json
import sys
from pathlib import Path

if __name__ == "__main__":
    folder, place, ports, batch = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4])
    place.mkdir(parents=True)
    server = {
        "host": "127.0.0.1",
        "http_port": ports[0],
        "grpc_port": ports[1],
        "metrics_port": ports[2],
        "debug": False,
    }
    model = {
        "name": "flights", "implementation": "mlserver_sklearn.SKLearnModel",
        "parameters": {"uri": f"{folder}/model.joblib"},
    }  # fmt: skip
    if batch:
        model |= {"max_batch_size": batch, "max_batch_time": 0.01}
    (place / "settings.json").write_text(json.dumps(server))
    (place / "model-settings.json").write_text(json.dumps(model))
