"""Axolotl's own schema on configurations, in Axolotl's environment: `python scripts/validate_axolotl.py CONFIG.yaml...`

Prints a JSON object for each: valid, and the keys that the schema does not know (it drops those without a word).
Exit status 1 where one is refused. The machine that is assumed has one H100.
"""

import json
import sys

import yaml

MACHINE = {"bf16": True, "fp8": True, "tf32": True, "n_gpu": 1, "n_node": 1, "compute_capability": "sm_90"}
PACKAGES = {"torch_version": "2.13.0"}


def main(paths: list[str]) -> int:
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    failed = False
    for path in paths:
        with open(path, encoding="utf-8") as file:
            given = yaml.safe_load(file)
        told = {"file": path, "valid": True, "unknown": []}
        try:
            known = validate_config(
                DictDefault(given), capabilities=MACHINE, env_capabilities={"torch_version": "2.13.0"}
            )
            told["unknown"] = sorted(set(given) - set(known))
        except ValueError as error:  # pydantic's
            told |= {"valid": False, "error": str(error)}
        failed |= not told["valid"] or bool(told["unknown"])
        print(json.dumps(told), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
