"""Settings of MLServer for one model: ``python mlserver_settings.py MODEL PLACE PORTS BATCH``.

One worker, its default. ``BATCH`` is 0 (its default, no adaptive batching) or the number of requests in a batch, with
one millisecond to wait for company: of 1, 5, 50 and 500 ms it gave the most requests a second.
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
        model |= {"max_batch_size": batch, "max_batch_time": 0.001}
    (place / "settings.json").write_text(json.dumps(server))
    (place / "model-settings.json").write_text(json.dumps(model))
