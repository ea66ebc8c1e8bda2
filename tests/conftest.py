"""What every test runs under: no network, few threads, gpu and network tests only where they can run."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: tests beside each other, a thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["SHOESTRING_CACHE"] = os.devnull  # prices fetched on this machine are none of the tests' business
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="shoestring-tests-")  # nor are launches; removed at the end

import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect, rather than skip, what this machine has nothing for."""
    kept, left_out = [], []
    has_network = os.environ.get("SHOESTRING_TEST_NETWORK", "") not in ("", "0")
    for item in items:
        needs_gpu = item.get_closest_marker("gpu") is not None
        needs_network = item.get_closest_marker("network") is not None
        runs = (not needs_gpu or has_cuda()) and (not needs_network or has_network)
        (kept if runs else left_out).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


def pytest_unconfigure() -> None:
    """Launches that tests registered."""
    shutil.rmtree(os.environ["XDG_STATE_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def run_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody interrupted, which launched ones are held against."""
    from tests.launched import run_alone

    return run_alone(tmp_path_factory.mktemp("alone"))


def has_cuda() -> bool:
    """Whether torch sees a CUDA device (torch is imported only if a gpu test asks)."""
    import torch

    return torch.cuda.is_available()
