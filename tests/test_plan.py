"""Settings, memory, time and the ladder: hand-checked figures, invariants, overrides and refusals."""

from dataclasses import replace

import pytest

from shoestring.config import RunConfig
from shoestring.errors import BadInput, ModelError
from shoestring.market.prices import Price
from shoestring.plan.devices import gpu_spec, gpu_table, planned_device
from shoestring.plan.ladder_plan import busy_note, plan_ladder
from shoestring.plan.memory import NF4_BYTES_PER_PARAM, activation_bytes_per_token, predict_memory, weight_bytes
from shoestring.plan.settings import GIVEN, answer_limit, resolve_settings
from shoestring.plan.shapes import shape_from_config, shape_of
from shoestring.plan.throughput import num_steps_of, predict_time, priors, quantile, train_flops_per_token
from shoestring.records import Device, TokenCounts, plan_from_json, to_json
from shoestring.train.forest import as_array
from shoestring.train.loss import ROUND_WIDTH
from shoestring.train.schedule import PADDED, build_schedule

GIB = 2**30
CPU = Device("cpu", "cpu", 16 * GIB, 2, "float32", "")
H100 = planned_device("H100-SXM", CPU)
PRICE = Price(0.36, "given in the run file", "", "given")  # 0.0001 USD a second
SIZES_3M = {
    "hidden_size": 192,
    "num_hidden_layers": 5,
    "num_attention_heads": 3,
    "head_dim": 64,
    "intermediate_size": 512,
    "vocab_size": 4096,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
TINY = shape_from_config("shoestring-tiny", {"model_type": "llama", **SIZES_3M}, "test")
COUNTS = TokenCounts(prompt=(90,) * 320, answer=(10,) * 320, eval_prompt=(90,) * 50, eval_answer=(10,) * 50)


def config(**changes):
    return RunConfig.model_validate(
        {"name": "t", "task": {"kind": "extract", "bar": 0.8}, "data": {"train": "t.jsonl"}, **changes}
    )


def test_settings_by_hand():
    settings = resolve_settings(config(), TINY, COUNTS, CPU)
    assert (settings.lora_rank, settings.lora_alpha) == (16, 32)
    assert settings.learning_rate == pytest.approx(5e-4 * (2000 / 192) ** 0.781, rel=0.005)
    assert settings.seq_len == 128  # 100 rounded up to a multiple of 32
    assert settings.batch_tokens == 1600 == settings.micro_batch_tokens  # 16 rows of 100
    assert settings.num_epochs == 10  # 2,500 steps of 16 rows would be 125 passes over 320
    assert settings.max_new_tokens == 16  # 10 x 1.15 + 4, to a multiple of 4
    assert settings.method == "lora"


def test_one_rule_limits_the_answers_of_prompts_and_of_fine_tunes():
    task = config().task
    assert answer_limit(task, (3, 10), 1024, "m")[0] == resolve_settings(config(), TINY, COUNTS, CPU).max_new_tokens
    assert answer_limit(task, (700,), 4096, "m")[0] == 812  # 700 x 1.15 + 4, to a multiple of 4
    assert answer_limit(task, (700,), 512, "m") == (
        511,
        "the longest training answer has 700 tokens; held to the context of m",
    )
    given = config(task={"kind": "extract", "bar": 0.8, "max_new_tokens": 7}).task
    assert answer_limit(given, (700,), 512, "m") == (7, GIVEN)


def test_learning_rates_of_the_tinker_rule():
    for name, rate in (("meta-llama/Llama-3.1-8B", 2.9e-4), ("Qwen/Qwen3-8B", 4.7e-4)):
        assert resolve_settings(config(), shape_of(name), COUNTS, H100).learning_rate == pytest.approx(rate, rel=0.02)


def test_every_setting_has_a_reason():
    settings = resolve_settings(config(), TINY, COUNTS, CPU)
    keys = set(to_json(settings)) - {"reasons"}
    assert keys == set(settings.reasons) and all(settings.reasons.values())


def test_broad_tasks_and_real_models():
    settings = resolve_settings(config(task={"kind": "generate", "bar": 0.5}), shape_of("Qwen/Qwen3-0.6B"), COUNTS, CPU)
    assert (settings.lora_rank, settings.num_epochs) == (32, 3)


def test_given_values_win_and_say_so():
    given = {"lora_rank": 8, "num_epochs": 1.5, "learning_rate": 1e-3, "seq_len": 256, "batch_tokens": 2048,
             "micro_batch_tokens": 512, "num_threads": 1, "patience": 4, "num_evals": 3}  # fmt: skip
    settings = resolve_settings(config(train=given, method="qlora", seed=5), TINY, COUNTS, CPU)
    for key, value in given.items():
        assert getattr(settings, key) == value and settings.reasons[key] == GIVEN, key
    assert settings.lora_alpha == 16 and settings.reasons["lora_alpha"] != GIVEN  # follows the given rank
    assert settings.method == "qlora" and settings.seed == 5
    capped = resolve_settings(config(task={"kind": "extract", "bar": 0.8, "max_new_tokens": 7}), TINY, COUNTS, CPU)
    assert capped.max_new_tokens == 7 and capped.reasons["max_new_tokens"] == GIVEN


def test_micro_batch_never_passes_the_batch_and_holds_one_row():
    settings = resolve_settings(config(train={"micro_batch_tokens": 9999, "batch_tokens": 640}), TINY, COUNTS, CPU)
    assert settings.micro_batch_tokens == 640
    small = Device("cpu", "small", 2 * GIB, 2, "bfloat16", "")
    settings = resolve_settings(config(), shape_of("Qwen/Qwen3-0.6B"), COUNTS, small)
    assert settings.seq_len <= settings.micro_batch_tokens <= settings.batch_tokens


def test_rows_past_the_context_are_said_and_a_given_length_past_it_refused():
    long = TokenCounts(prompt=(2000, 90), answer=(10, 10), eval_prompt=(90,), eval_answer=(10,))
    settings = resolve_settings(config(), TINY, long, CPU)
    assert settings.seq_len == 1024 and "1 of 2 rows are longer" in settings.reasons["seq_len"]
    with pytest.raises(ModelError, match=r"seq_len = 4096 passes the context .* 1024"):
        resolve_settings(config(train={"seq_len": 4096}), TINY, COUNTS, CPU)
    with pytest.raises(ModelError, match="no training row"):
        resolve_settings(config(), TINY, TokenCounts((), (), (), ()), CPU)


def test_method_follows_memory():
    shape = shape_of("Qwen/Qwen3-8B")
    roomy = resolve_settings(config(), shape, COUNTS, H100)
    assert roomy.method == "lora"
    tight = resolve_settings(config(), shape, COUNTS, planned_device("RTX5090", CPU))
    assert tight.method == "lora"
    small = resolve_settings(config(), shape, COUNTS, planned_device("T4", CPU))
    assert small.method == "qlora" and "does not fit" in small.reasons["method"]


def test_weight_bytes_by_hand():
    assert pytest.approx(4.127 / 8, rel=1e-4) == NF4_BYTES_PER_PARAM
    assert weight_bytes(TINY, "lora", "bfloat16") == 2 * TINY.num_params
    eight = shape_of("meta-llama/Llama-3.1-8B")
    assert weight_bytes(eight, "lora", "bfloat16") / 1e9 == pytest.approx(16.06, abs=0.01)
    assert weight_bytes(eight, "qlora", "bfloat16") / 1e9 == pytest.approx(6.98e9 * 0.51587 / 1e9 + 2.1, abs=0.02)


def test_parts_add_up_to_the_peak():
    m = predict_memory(TINY, method="lora", lora_rank=16, micro_batch_tokens=2048, device=CPU)
    varying = m.parts["activations"] + m.parts["logits"]
    fixed = sum(v for k, v in m.parts.items() if k not in ("runtime", "activations", "logits"))
    assert m.phase == "backward"
    assert m.allocated_expected_bytes == pytest.approx(fixed * 1.03 + varying * 1.8, rel=1e-6)
    assert m.device_expected_bytes == m.allocated_expected_bytes + m.parts["runtime"]


def test_measured_peaks_lie_in_the_range():
    # resident set of train_rung alone in a process, rank 16, rows of 156 tokens, 2,323 a micro-batch (2026-11-24)
    shape = shape_from_config("shoestring-3m", {"model_type": "llama", **SIZES_3M}, "test")
    for dtype, measured in (("float32", 1034 * 2**20), ("bfloat16", 1404 * 2**20)):
        device = Device("cpu", "Xeon", 16 * GIB, 1, dtype, "")
        m = predict_memory(shape, method="lora", lora_rank=16, micro_batch_tokens=2323, device=device, row_tokens=156)
        assert m.device_low_bytes < measured < m.device_high_bytes
        assert m.device_expected_bytes == pytest.approx(measured, rel=0.15)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft 0.21 under transformers 5.24
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activation_bytes_equal_what_autograd_keeps_in_our_loop(dtype):
    import torch
    from peft import LoraConfig, get_peft_model
    from peft.helpers import disable_input_dtype_casting
    from transformers import AutoModelForCausalLM, LlamaConfig

    from shoestring.train import loss
    from shoestring.train.attention import use_attention

    num_rows, num_tokens, rank = 2, 96, 4
    sizes = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    device = Device("cpu", "cpu", GIB, 1, dtype, "")

    def kept(num_layers):
        c = LlamaConfig(vocab_size=64, intermediate_size=320, num_hidden_layers=num_layers, pad_token_id=0, **sizes)
        model = AutoModelForCausalLM.from_config(c).to(getattr(torch, dtype))
        model = get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear", lora_dropout=0.0))
        use_attention(model.get_base_model())
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        seen = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                seen[storage.data_ptr()] = storage
            return tensor

        ids_BT = torch.ones(num_rows, num_tokens, dtype=torch.long)
        with (
            disable_input_dtype_casting(model, active=dtype != "float32"),
            loss.precision(device),
            torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
        ):
            model.get_base_model().base_model(input_ids=ids_BT, use_cache=False)
        return sum(s.nbytes() for s in seen.values())

    measured = (kept(3) - kept(1)) / 2 / (num_rows * num_tokens)
    one_layer = {"intermediate_size": 320, "num_hidden_layers": 1, "vocab_size": 64, "max_position_embeddings": 128}
    shape = shape_from_config("one", {"model_type": "llama", "tie_word_embeddings": True, **sizes, **one_layer}, "test")
    assert activation_bytes_per_token(shape, rank, device, num_tokens) == pytest.approx(measured, rel=0.03)


def test_memory_invariants():
    eight = shape_of("meta-llama/Llama-3.1-8B")

    def peak(**changes):
        asked = {"method": "lora", "lora_rank": 16, "micro_batch_tokens": 4096, "device": H100, **changes}
        return predict_memory(eight, **asked)

    base = peak()
    assert base.device_low_bytes < base.device_expected_bytes < base.device_high_bytes
    assert peak(lora_rank=64).device_expected_bytes > base.device_expected_bytes
    assert peak(micro_batch_tokens=8192).device_expected_bytes > base.device_expected_bytes
    assert peak(method="qlora").parts["weights"] < 0.45 * base.parts["weights"]
    assert peak(device=planned_device("T4", CPU)).verdict == "does_not_fit"


def test_published_qlora_run_lies_in_the_range():
    # LitGPT, Gemma-2-9B QLoRA r=16 on an A10G did run out of memory at 16 bit and did fit at NF4.
    nine = {"model_type": "gemma2", "hidden_size": 3584, "num_hidden_layers": 42, "num_attention_heads": 16,
            "num_key_value_heads": 8, "head_dim": 256, "intermediate_size": 14336, "vocab_size": 256000,
            "max_position_embeddings": 8192}  # fmt: skip
    shape = shape_from_config("google/gemma-2-9b", nine, "test")
    assert shape.num_params == pytest.approx(9.242e9, rel=0.001)
    a10g = planned_device("A10G", CPU)
    asked = {"lora_rank": 16, "micro_batch_tokens": 512, "device": a10g}
    assert predict_memory(shape, method="lora", **asked).verdict != "fits"
    assert predict_memory(shape, method="qlora", **asked).verdict == "fits"


def test_flops_by_hand():
    shape = TINY
    expected = 4 * shape.num_linear_params + 6 * 16 * shape.num_lora_params_per_rank
    expected += 12 * 5 * 192 * 50 + 4 * 4096 * 192 * 0.1
    assert train_flops_per_token(shape, 16, 100, 0.1) == pytest.approx(expected)


def test_time_grows_with_work_and_shrinks_with_threads():
    def predict(shape=TINY, device=CPU, counts=COUNTS, **train):
        return predict_time(shape, resolve_settings(config(train=train), shape, counts, device), counts, device,
                            num_dev_rows=30)  # fmt: skip

    base = predict()
    assert base.train_s.low < base.train_s.value < base.train_s.high
    assert base.eval_s.low < base.eval_s.value < base.eval_s.high
    assert base.num_train_tokens == 320 * 100 * 10
    assert predict(num_epochs=2).train_s.value < base.train_s.value
    assert predict(num_threads=1).train_s.value > base.train_s.value
    six = shape_of("Qwen/Qwen3-0.6B")
    assert predict(shape=six).train_s.value > 10 * predict(num_epochs=3).train_s.value
    assert predict(shape=six, device=H100).train_s.value < predict(shape=six).train_s.value
    assert quantile([], 0.9) == 0 and quantile([3, 1, 2], 0.5) == 2


def test_every_prior_row():
    kinds = {}
    for (kind, _, quantity), prior in priors().items():
        assert 0 < prior.value.low < prior.value.value < prior.value.high, prior
        assert prior.source and prior.as_of >= "2026-01-01" and prior.unit, prior
        assert prior.basis in ("measured", "third-party copy", "recalled", "assumption"), prior
        kinds.setdefault(kind, set()).add(quantity)
    assert set(kinds) == {"cpu", "cuda", "mps"}
    for quantities in kinds.values():
        assert {"layer_floor_s", "step_floor_s", "decode_layer_floor_s", "load_s"} < quantities


def test_every_gpu_row():
    for name, spec in gpu_table().items():
        assert spec.source and 10e9 < spec.memory_bytes < 300e9, name
        for best in (spec.measured_flops_per_s, spec.power_limited_flops_per_s):
            assert best is None or 0.5 * spec.peak_flops_per_s < best < spec.peak_flops_per_s, name
        assert 10e9 < spec.link_bytes_per_s < 1e12, name
        assert 200e9 < spec.mem_bw_bytes_per_s < 10e12 and 50e12 < spec.peak_flops_per_s < 3e15, name
    assert gpu_spec("H100 80GB HBM3") is gpu_spec("NVIDIA H100 80GB HBM3") is gpu_table()["H100-SXM"]


def test_planning_for_another_device():
    assert planned_device(None, CPU) is CPU and planned_device("cpu", CPU) is CPU
    assert (H100.kind, H100.dtype, H100.memory_bytes) == ("cuda", "bfloat16", 80 * 10**9)
    assert planned_device("T4", CPU).dtype == "float16"
    with pytest.raises(BadInput, match=r"'H100' is not in the GPU table; near rows: .*H100-SXM"):
        planned_device("H100", CPU)


def test_ladder_is_sorted_by_cost_and_keeps_what_does_not_fit():
    shapes = {n: shape_of(n) for n in ("Qwen/Qwen3-32B", "Qwen/Qwen3-1.7B", "Qwen/Qwen3-0.6B")}
    plan = plan_ladder(config(), shapes, dict.fromkeys(shapes, COUNTS), planned_device("RTX4090", CPU), PRICE)
    assert [r.model for r in plan.rungs] == ["Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B", "Qwen/Qwen3-32B"]
    assert plan.rungs[-1].verdict == "does_not_fit" and any("does not fit" in n for n in plan.notes)
    first = plan.rungs[0]
    assert first.cost_usd.value == pytest.approx((first.train_s.value + first.eval_s.value) * 1e-4)
    assert first.price_source == "given in the run file"
    assert plan_from_json(to_json(plan)) == plan


def test_deadline_leaves_a_rung_out_and_budget_is_noted():
    shapes = {"tiny": TINY, "Qwen/Qwen3-8B": shape_of("Qwen/Qwen3-8B")}
    big = Device("cpu", "cpu", 64 * GIB, 2, "bfloat16", "")
    plan = plan_ladder(config(deadline_h=2, budget_usd=0.000001), shapes, dict.fromkeys(shapes, COUNTS), big, PRICE)
    assert [r.model for r in plan.rungs] == ["tiny"]
    assert any("Qwen/Qwen3-8B is left out" in n and "the deadline is 2 h" in n for n in plan.notes)
    assert any("tiny alone is expected to cost" in n for n in plan.notes)
    none = plan_ladder(config(deadline_h=1e-6), shapes, dict.fromkeys(shapes, COUNTS), big, PRICE)
    assert none.rungs == () and "no rung is left" in none.notes[-1]


def test_a_busy_machine_is_said():
    note = busy_note(9.0, 2)
    assert "load 9.0 on 2 processors" in note and "about 5 times as long" in note
    assert busy_note(1.0, 2) is None


@pytest.mark.parametrize(("batch", "micro"), [(128, 128), (512, 512), (1600, 400)])
@pytest.mark.parametrize("epochs", [1.0, 2.5])
def test_planned_steps_are_those_of_the_schedule(batch, micro, epochs):
    lengths = [40 + (37 * i) % 61 for i in range(200)]  # 40 to 100 tokens
    counts = TokenCounts(tuple(n - 10 for n in lengths), (10,) * 200, (90,) * 50, (10,) * 50)
    given = {"batch_tokens": batch, "micro_batch_tokens": micro, "num_epochs": epochs}
    settings = resolve_settings(config(train=given), TINY, counts, CPU)
    rows = [[as_array([1] * n)] for n in lengths]
    schedule = build_schedule(rows, epochs, batch, micro, 0, packing=PADDED, round_to=ROUND_WIDTH)
    num_steps, num_micro = num_steps_of(lengths, settings)
    assert num_steps == pytest.approx(len(schedule.steps), rel=0.05)
    assert num_micro <= sum(map(len, schedule.steps)) <= 2.5 * num_micro  # lengths part where that pads less


def test_recomputed_layers_are_planned_where_nothing_else_fits():
    eight = shape_of("meta-llama/Llama-3.1-8B")
    asked = {"method": "lora", "lora_rank": 16, "micro_batch_tokens": 4096, "device": H100}
    peaks = [predict_memory(eight, **asked, num_recomputed=num).device_expected_bytes for num in (0, 16, 32)]
    assert peaks == sorted(peaks, reverse=True) and peaks[2] < 0.65 * peaks[0]
    assert predict_memory(eight, **asked, num_recomputed=99).device_expected_bytes == peaks[2]
    counts = TokenCounts((7000,) * 40, (1000,) * 40, (90,), (10,))
    with_room = resolve_settings(config(), eight, counts, H100)
    assert with_room.recompute is None and "measured before the first step" in with_room.reasons["recompute"]
    small = resolve_settings(config(), eight, counts, planned_device("RTX4090", CPU))
    assert small.method == "qlora" and 0 < small.recompute < 32


def test_several_gpus_are_planned_for():
    """70B in 16 bits is 141 GB: in shards on four H100, whole nowhere; its NF4 base is whole on each."""
    shape, four = shape_of("meta-llama/Llama-3.1-70B"), replace(H100, num_devices=4)
    sharded = resolve_settings(config(method="lora"), shape, COUNTS, four)
    assert (sharded.num_processes, sharded.parallelism) == (4, "fsdp")
    assert "in 4 shards it does" in sharded.reasons["parallelism"]
    whole = resolve_settings(config(), shape, COUNTS, four)
    assert (whole.num_processes, whole.parallelism, whole.method) == (4, "ddp", "qlora")
    assert resolve_settings(config(), shape, COUNTS, H100).parallelism == "none"
    assert resolve_settings(config(), TINY, COUNTS, replace(CPU, num_devices=1)).num_processes == 1
    given = resolve_settings(config(train={"num_processes": 2, "parallelism": "fsdp"}), TINY, COUNTS, CPU)
    assert (given.num_processes, given.parallelism, given.reasons["num_processes"]) == (2, "fsdp", GIVEN)


def test_a_sharded_base_by_hand():
    """A part of every layer, two whole layers in their turn, and what is not sharded."""
    eight = shape_of("meta-llama/Llama-3.1-8B")
    whole, halves = (
        predict_memory(eight, method="lora", lora_rank=16, micro_batch_tokens=512, device=H100, num_shards=n).parts[
            "weights"
        ]
        for n in (1, 2)
    )
    layers = 2 * eight.num_linear_params
    assert halves == pytest.approx(whole - layers / 2 + 2 * layers / 32, abs=2)


def test_more_gpus_take_less_time_and_never_less_than_their_share():
    shape, four = shape_of("Qwen/Qwen3-8B"), replace(H100, num_devices=4)
    one, several = (
        predict_time(shape, resolve_settings(config(), shape, COUNTS, device), COUNTS, device, num_dev_rows=8)
        for device in (H100, four)
    )
    assert one.tokens_per_s.value < several.tokens_per_s.value < 4 * one.tokens_per_s.value
    assert several.tokens_per_s.high <= 4 * one.tokens_per_s.high * 1.000001
