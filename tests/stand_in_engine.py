"""A worker that speaks the engines' protocol without an engine: real process, real files, no training.

Reads the same job.json, writes the same events and checkpoints; weights come from FOLDER/weights.safetensors, which
the test puts there. job.json's "trouble" (from the environment) says what goes wrong.
"""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path


def main(folder: Path, descriptor: int) -> int:
    job = json.loads((folder / "job.json").read_text())
    trouble = os.environ.get("STAND_IN_TROUBLE", "")
    asked = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    with os.fdopen(descriptor, "w") as pipe:

        def tell(event, **facts):
            pipe.write(json.dumps({"event": event, **facts}) + "\n")
            pipe.flush()

        def save(step):
            made = Path(job["checkpoints"]) / f"checkpoint-{step}"
            made.mkdir()
            shutil.copyfile(folder / "weights.safetensors", made / "adapter_model.safetensors")
            shutil.copyfile(folder / "adapter_config.json", made / "adapter_config.json")
            tell("saved", step=step, folder=str(made))

        tell("started", versions={"stand-in": "1"})
        first = int(job["resume"].rpartition("-")[2]) if job["resume"] else 0
        for step in range(first + 1, job["max_steps"] + 1):
            if trouble == "crash" and step == 3:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            loss = float("nan") if trouble == "diverge" and step == 2 else 1.0 / step
            counts = {"num_tokens": 10, "num_computed_tokens": 12, "peak_bytes": 1000}
            tell("step", step=step, loss=loss, learning_rate=0.1, grad_norm=1.0, **counts)
            while trouble == "waits" and step == 2 and not asked:
                time.sleep(0.01)
            if asked:
                save(step)
                tell("stopped", step=step)
                return 5
            if step in job["save_steps"]:
                save(step)
        tell("finished", step=job["max_steps"])
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[2]), int(sys.argv[3])))
