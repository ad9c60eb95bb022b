"""Quantised folders, dequantised: each format is unpacked as it is defined, value by value."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import save_base, tiny_adapter, tiny_model, tiny_tokenizer

from ntkprobe.checkpoints import LoadSettings, load_model
from ntkprobe.checkpoints.export import export_model
from ntkprobe.checkpoints.quantised import Quantisation, dequantised
from ntkprobe.checkpoints.safeguards import DEQUANTISED
from ntkprobe.errors import UserError

CPU = LoadSettings(device="cpu")
IDS = torch.arange(6)[None]
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
GROUP, BLOCK = 16, 64
LEVELS = [math.copysign(level / 7, level) for level in range(-8, 8)]


def signed(value: int) -> int:
    """The 32-bit integer of these bits."""
    return value - 2**32 if value >= 2**31 else value


def gptq(weight: torch.Tensor, bits: int = 4, first: bool = True) -> tuple[dict, torch.Tensor]:
    """Pack along the inputs, eight codes of four bits to an integer, the lowest bits first."""
    outputs, inputs = weight.shape
    codes, zeros, scales, plain = grid(weight, 2**bits - 1)
    each = 32 // bits
    qweight = [
        [signed(sum(codes[o][i + k] << bits * k for k in range(each))) for o in range(outputs)]
        for i in range(0, inputs, each)
    ]
    qzeros = [
        [
            signed(sum((zeros[o + k][g] - first) << bits * k for k in range(each)))
            for o in range(0, outputs, each)
        ]
        for g in range(inputs // GROUP)
    ]
    groups = torch.arange(inputs, dtype=torch.int32) // GROUP
    parts = {"qweight": i32(qweight), "qzeros": i32(qzeros), "scales": scales, "g_idx": groups}
    return parts, plain


def awq(weight: torch.Tensor) -> tuple[dict, torch.Tensor]:
    """Pack along the outputs: of eight, columns 0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits on."""
    outputs, inputs = weight.shape
    codes, zeros, scales, plain = grid(weight, 15)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    qweight = [
        [
            signed(sum(codes[o + column][i] << 4 * k for k, column in enumerate(order)))
            for o in range(0, outputs, 8)
        ]
        for i in range(inputs)
    ]
    qzeros = [
        [
            signed(sum(zeros[o + column][g] << 4 * k for k, column in enumerate(order)))
            for o in range(0, outputs, 8)
        ]
        for g in range(inputs // GROUP)
    ]
    return {"qweight": i32(qweight), "qzeros": i32(qzeros), "scales": scales}, plain


def grid(weight: torch.Tensor, top: int) -> tuple[list, list, torch.Tensor, torch.Tensor]:
    """Codes, zeros 1 … top − 1, scales `[groups, outputs]`, and what the codes stand for."""
    outputs, inputs = weight.shape
    codes = [[0] * inputs for _ in range(outputs)]
    zeros = [[0] * (inputs // GROUP) for _ in range(outputs)]
    scales, plain = torch.zeros(inputs // GROUP, outputs), torch.zeros(outputs, inputs)
    for o in range(outputs):
        for g in range(inputs // GROUP):
            row = weight[o, g * GROUP : (g + 1) * GROUP]
            scale = float(row.max() - row.min()) / (top - 2)
            zero = min(max(round(-float(row.min()) / scale), 1), top - 1)
            scales[g, o], zeros[o][g] = scale, zero
            for i in range(g * GROUP, (g + 1) * GROUP):
                codes[o][i] = min(max(round(float(weight[o, i]) / scale) + zero, 0), top)
                plain[o, i] = float(scales[g, o]) * (codes[o][i] - zero)
    return codes, zeros, scales, plain


def four_bits(weight: torch.Tensor, nested: bool = False) -> tuple[dict, torch.Tensor]:
    """Pack two codes to a byte, the first in the high bits; scales may be codes themselves."""
    flat = weight.flatten().tolist()
    blocks = [flat[start : start + BLOCK] for start in range(0, len(flat), BLOCK)]
    scales = [max(map(abs, block)) for block in blocks]
    about = {"quant_type": "nf4", "blocksize": BLOCK, "dtype": "float32"}
    about["shape"] = list(weight.shape)
    parts = {"weight.quant_map": torch.tensor(LEVELS)}
    if nested:
        levels = [k / 255 * 2 - 1 for k in range(256)]
        mean = sum(scales) / len(scales)
        about |= {"nested_blocksize": 4, "nested_offset": mean, "nested_dtype": "float32"}
        above = [
            max(abs(s - mean) for s in scales[k : k + 4]) + 1e-6 for k in range(0, len(scales), 4)
        ]
        inner = [nearest((s - mean) / above[k // 4], levels) for k, s in enumerate(scales)]
        scales = [levels[code] * above[k // 4] + mean for k, code in enumerate(inner)]
        parts["weight.absmax"] = torch.tensor(inner, dtype=torch.uint8)
        parts["weight.nested_absmax"] = torch.tensor(above)
        parts["weight.nested_quant_map"] = torch.tensor(levels)
    else:
        parts["weight.absmax"] = torch.tensor(scales)
    codes = [
        nearest(value / scale, LEVELS)
        for block, scale in zip(blocks, scales, strict=True)
        for value in block
    ]
    packed = [codes[k] << 4 | codes[k + 1] for k in range(0, len(codes), 2)]
    parts["weight"] = torch.tensor(packed, dtype=torch.uint8)[:, None]
    text = json.dumps(about).encode()
    parts["weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(text), dtype=torch.uint8)
    plain = [LEVELS[code] * scales[k // BLOCK] for k, code in enumerate(codes)]
    return parts, torch.tensor(plain).reshape(weight.shape)


def int8(weight: torch.Tensor) -> tuple[dict, torch.Tensor]:
    largest = weight.abs().amax(1)
    codes = (weight / largest[:, None] * 127).round().to(torch.int8)
    parts = {"weight": codes, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return parts, codes.float() / 127 * largest[:, None]


def fp8(weight: torch.Tensor, size: int = 24) -> tuple[dict, torch.Tensor]:
    """Blocks that do not divide the matrix."""
    rows, columns = (-(-n // size) for n in weight.shape)
    scales, codes = torch.zeros(rows, columns), torch.zeros(weight.shape)
    plain = torch.zeros(weight.shape)
    for r in range(rows):
        for c in range(columns):
            place = slice(r * size, (r + 1) * size), slice(c * size, (c + 1) * size)
            scales[r, c] = weight[place].abs().max() / 448
            stored = (weight[place] / scales[r, c]).to(torch.float8_e4m3fn)
            codes[place], plain[place] = stored.float(), stored.float() * scales[r, c]
    return {"weight": codes.to(torch.float8_e4m3fn), "weight_scale_inv": scales}, plain


def nearest(value: float, levels: list[float]) -> int:
    return min(range(len(levels)), key=lambda code: abs(levels[code] - value))


def i32(rows: list) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.int32)


BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True}
FORMATS = {
    "nf4": (four_bits, BNB),
    "nf4-nested": (lambda w: four_bits(w, nested=True), BNB),
    "int8": (int8, {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": GROUP}),
    "gptq-8": (lambda w: gptq(w, 8), {"quant_method": "gptq", "bits": 8, "group_size": GROUP}),
    "gptq-v2": (
        lambda w: gptq(w, first=False),
        {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"},
    ),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "version": "gemm"}),
    "fp8": (fp8, {"quant_method": "fp8", "weight_block_size": [24, 24]}),
}


def quantised(folder: Path, pack, settings: dict) -> dict[str, torch.Tensor]:
    """Write a model whose projections are packed; return the weights that these stand for."""
    tiny_model(2, **SIZES).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    plain = dict(tensors)
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        parts, plain[name] = pack(tensors.pop(name))
        module = name.removesuffix(".weight")
        tensors |= {f"{module}.{part}": value.contiguous() for part, value in parts.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    edit(folder, quantization_config=settings)
    return plain


def edit(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.fixture(scope="module", params=FORMATS)
def packed(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / request.param
    return folder, quantised(folder, *FORMATS[request.param])


def test_every_format_is_unpacked_as_it_is_defined(packed):
    folder, plain = packed
    how = Quantisation.of(folder)
    assert how is not None
    found = dequantised(folder, how)
    assert set(found) == set(plain)
    for name, value in plain.items():
        assert torch.allclose(found[name].float(), value.float(), atol=1e-5), name
    original = tiny_model(2, **SIZES).state_dict()
    name = "model.layers.0.mlp.down_proj.weight"
    difference = (found[name] - original[name]).abs().max() / original[name].abs().max()
    assert 1e-4 < difference < 0.3  # quantised, and the matrix it was made of


def test_an_exported_folder_is_the_dequantised_model(packed, tmp_path):
    folder, plain = packed
    made = export_model(str(folder), tmp_path / "plain", settings=CPU)
    assert "quantization_config" not in json.loads((made / "config.json").read_text())
    trained = tiny_model(2, **SIZES)
    trained.load_state_dict(plain, strict=False)
    found = load_model(str(made), CPU)
    assert torch.allclose(found(IDS).logits, trained(IDS).logits, atol=1e-4)


def test_a_quantised_folder_says_which_command_dequantises_it(packed):
    folder, _ = packed
    with pytest.raises(UserError, match="ntkprobe export --model") as caught:
        load_model(str(folder), CPU)
    assert "\n" not in str(caught.value)


def test_an_adapter_is_exported_over_its_quantised_base(tmp_path):
    plain = quantised(tmp_path / "base", *FORMATS["nf4"])
    base = tiny_model(2, **SIZES)
    base.load_state_dict(plain, strict=False)
    base.name_or_path = base.config._name_or_path = str(tmp_path / "base")
    adapter = tiny_adapter(base, seed=1)
    adapter.save_pretrained(tmp_path / "adapter")
    made = export_model(str(tmp_path / "adapter"), tmp_path / "merged", settings=CPU)
    found = load_model(str(made), CPU)(IDS).logits
    assert torch.allclose(found, adapter(IDS).logits, atol=1e-4)


@pytest.mark.parametrize("method", ["hqq", "aqlm", "torchao", None])
def test_other_methods_are_named_and_say_where_to_load_them(method, tmp_path):
    folder = save_base(tmp_path / "base")
    edit(folder, quantization_config={"quant_method": method, "bits": 4})
    for call in (
        lambda: load_model(str(folder), CPU),
        lambda: export_model(str(folder), tmp_path / "plain", settings=CPU),
    ):
        with pytest.raises(UserError, match=r"model\.dequantize\(\)"):
            call()
    assert not (tmp_path / "plain").exists()


@pytest.mark.parametrize(
    ("form", "changes", "word"),
    [
        ("gptq", {"bits": 3}, "codes of 3 bits"),
        ("awq", {"version": "gemv"}, "a packing other than"),
        ("gptq", {"checkpoint_format": "gptq_v2"}, None),
        ("fp8", {"weight_block_size": [4, 4]}, "scales of"),
    ],
)
def test_what_cannot_be_unpacked_is_one_line_and_another_reading_is_another_matrix(
    form, changes, word, tmp_path
):
    folder = tmp_path / form
    pack, settings = FORMATS[form]
    plain = quantised(folder, pack, settings | changes)
    how = Quantisation.of(folder)
    if word is None:
        name = "model.layers.0.mlp.down_proj.weight"
        assert not torch.allclose(dequantised(folder, how)[name], plain[name], atol=1e-3)
        return
    with pytest.raises(UserError, match=word) as caught:
        dequantised(folder, how)
    assert "\n" not in str(caught.value)


def test_the_methods_named_in_messages_are_those_that_are_read():
    assert {settings["quant_method"] for _, settings in FORMATS.values()} == set(DEQUANTISED)


def test_bitsandbytes_itself_dequantises_to_the_same(tmp_path):
    bnb = pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    assert bnb.__version__
    tiny_model(2, **SIZES).save_pretrained(tmp_path / "base")
    for name, options in {
        "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
        "nested": {"load_in_4bit": True, "bnb_4bit_use_double_quant": True},
        "int8": {"load_in_8bit": True},
    }.items():
        how = {"dtype": torch.float32, "device_map": "cpu"}
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path / "base", quantization_config=BitsAndBytesConfig(**options), **how
        )
        model.save_pretrained(tmp_path / name)
        expected = AutoModelForCausalLM.from_pretrained(tmp_path / name, **how)
        expected = expected.dequantize(dtype=torch.float32).state_dict()
        found = dequantised(tmp_path / name, Quantisation.of(tmp_path / name))
        for key, value in found.items():
            assert torch.allclose(value.float(), expected[key].float(), atol=1e-5), (name, key)
        shutil.rmtree(tmp_path / name)
