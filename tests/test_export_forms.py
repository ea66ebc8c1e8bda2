"""stages/exporting: what `export --to gguf|gguf-adapter|ollama` refuses before anything is converted."""

import pytest

from shoestring.errors import BadInput, MissingDependency, ModelError
from shoestring.serve import llamacpp_home
from shoestring.stages.exporting import require_form, require_merged


def test_forms_kinds_and_a_missing_llamacpp_are_told_first(tmp_path, monkeypatch):
    with pytest.raises(BadInput, match="--to onnx: choose one of trl, axolotl, gguf, gguf-adapter, ollama"):
        require_form("onnx", "q8_0")
    with pytest.raises(ModelError, match="'q9' is not one of f32, f16, bf16, q8_0, q6_k"):
        require_form("gguf", "q9")
    monkeypatch.setenv(llamacpp_home.VARIABLE, str(tmp_path))
    with pytest.raises(MissingDependency, match="holds no llama-server"):
        require_form("gguf", "q8_0")


def test_refused_merged_weights_are_not_converted(tmp_path):
    require_merged(tmp_path, {"passed": True})
    with pytest.raises(ModelError, match=r"refused \(its files lack x\), so they are not converted; --to gguf-adapter"):
        require_merged(tmp_path, {"passed": False, "faults": ["its files lack x"]})
    with pytest.raises(ModelError, match="they differ from what was trained"):
        require_merged(tmp_path, {"passed": False})  # as an older version recorded it
