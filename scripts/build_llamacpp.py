"""llama.cpp from the registry's sources: llama-server, llama-quantize and the convert scripts, in one folder.

`python scripts/build_llamacpp.py --install DIR [--jobs N]` downloads llama-cpp-python's source distribution (77 MB,
with all of llama.cpp in it), builds the two programs with cmake (about 11 minutes on two cores), and copies the scripts
with the gguf package of the same version: the registry's gguf is older under the same number. Then
SHOESTRING_LLAMACPP=DIR, or install to .venv/llamacpp, where it is found without. Needs a C++ compiler and cmake.
Prints one JSON object.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

VERSION = "0.3.36"
PROGRAMS = ("llama-server", "llama-quantize")
SCRIPTS = ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "conversion", "gguf-py", "LICENSE")
OPTIONS = (
    "CMAKE_BUILD_TYPE=Release", "BUILD_SHARED_LIBS=OFF", "GGML_NATIVE=ON", "LLAMA_CURL=OFF", "LLAMA_OPENSSL=OFF",
    "LLAMA_BUILD_TESTS=OFF", "LLAMA_BUILD_EXAMPLES=OFF", "LLAMA_BUILD_SERVER=ON",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--install", type=Path, required=True, metavar="DIR")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--sources", type=Path, metavar="FOLDER", help="a llama.cpp source tree that is here already")
    given = parser.parse_args()
    target, started = given.install.resolve(), time.monotonic()
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            print(
                f"{tool} is not on PATH; install cmake and a C++ compiler (Debian: apt install cmake g++)",
                file=sys.stderr,
            )
            return 2
    with tempfile.TemporaryDirectory(prefix="llamacpp-") as work:
        sources = given.sources.resolve() if given.sources else unpack(download(Path(work)), Path(work))
        binaries = build(sources, Path(work) / "build", given.jobs)
        install(sources, binaries, target)
    version = subprocess.run(
        [str(target / "bin" / PROGRAMS[0]), "--version"], capture_output=True, text=True, check=True
    )
    said = (version.stdout + version.stderr).strip().splitlines()[0]
    print(json.dumps({"folder": str(target), "version": said, "wall_s": round(time.monotonic() - started, 1)}))
    return 0


def download(work: Path) -> Path:
    """The source distribution. Its metadata is asked of scikit-build-core, which a fresh environment has."""
    python = work / "pip" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(work / "pip")], check=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "scikit-build-core"], check=True)
    fetch = [*pip, "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
    subprocess.run([*fetch, "--dest", str(work), f"llama-cpp-python=={VERSION}"], check=True)
    return next(work.glob("llama_cpp_python-*.tar.gz"))


def unpack(archive: Path, work: Path) -> Path:
    with tarfile.open(archive) as file:
        file.extractall(work, filter="data")
    return work / archive.name.removesuffix(".tar.gz") / "vendor" / "llama.cpp"


def build(sources: Path, folder: Path, jobs: int) -> Path:
    """Both programs, linked whole; returns the folder that holds them."""
    configure = ["cmake", "-S", str(sources), "-B", str(folder), *(f"-D{option}" for option in OPTIONS)]
    subprocess.run(configure, check=True, stdout=sys.stderr)
    make = ["cmake", "--build", str(folder), "--target", *PROGRAMS, "-j", str(jobs)]
    subprocess.run(make, check=True, stdout=sys.stderr)
    return folder / "bin"


def install(sources: Path, binaries: Path, target: Path) -> None:
    (target / "bin").mkdir(parents=True, exist_ok=True)
    for name in PROGRAMS:
        shutil.copy2(binaries / name, target / "bin" / name)
    for name in SCRIPTS:
        if (sources / name).is_dir():
            shutil.copytree(sources / name, target / name, dirs_exist_ok=True)
        else:
            shutil.copy2(sources / name, target / name)


if __name__ == "__main__":
    sys.exit(main())
