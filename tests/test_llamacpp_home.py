"""serve/llamacpp_home: what is found where, and what is said where nothing is."""

import sys

import pytest

from shoestring.errors import MissingDependency
from shoestring.serve import llamacpp_home as home


def program(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_an_installed_folder_a_source_tree_and_bare_binaries(tmp_path, monkeypatch):
    for name, at in (("installed", "bin"), ("sources", "build/bin"), ("bare", ".")):
        folder = tmp_path / name
        server = program(folder / at / "llama-server")
        monkeypatch.setenv(home.VARIABLE, str(folder))
        found = home.find()
        assert found == home.LlamaCpp(server.resolve(), None, None, sys.executable)
        with pytest.raises(MissingDependency, match=r"comes without convert_hf_to_gguf\.py"):
            home.converter()
        quantize = program(folder / at / "llama-quantize")
        for script in (home.CONVERT, home.CONVERT_LORA):
            (folder / script).write_text("")
        python = program(folder / "venv" / "bin" / "python")
        assert home.converter() == home.LlamaCpp(server.resolve(), quantize.resolve(), folder, str(python))


def test_a_set_folder_without_it_is_an_error_and_not_passed_over(tmp_path, monkeypatch):
    program(tmp_path / "path" / "llama-server")
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setenv(home.VARIABLE, str(tmp_path / "empty"))
    with pytest.raises(MissingDependency, match=r"empty holds no llama-server; build it with .*build_llamacpp"):
        home.find()
    monkeypatch.delenv(home.VARIABLE)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert home.find().server == tmp_path / "path" / "llama-server"
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingDependency, match="is not found"):
        home.find()
