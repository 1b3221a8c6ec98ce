"""Encoders of packed layers, written from the formats' descriptions, with the float64 values that they stand for."""

import json

import numpy as np
import torch

RNG = np.random.default_rng(5)
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def stream(codes, bits):
    """Codes (rows, n) as 32-bit words, bit after bit from the lowest one of the first word."""
    places = (codes[..., None] >> np.arange(bits)) & 1
    flat = places.reshape(*codes.shape[:-1], -1)
    flat = np.pad(flat, [(0, 0)] * (flat.ndim - 1) + [(0, -flat.shape[-1] % 32)])
    words = (flat.reshape(*flat.shape[:-1], -1, 32).astype(np.uint64) << np.arange(32, dtype=np.uint64)).sum(-1)
    return torch.from_numpy(words.astype(np.uint32).view(np.int32).copy())


def whole(codes, bits):
    """Codes (rows, n) as 32-bit words with `32 // bits` codes each, the first one lowest."""
    each = 32 // bits
    codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, -codes.shape[-1] % each)])
    parts = codes.reshape(*codes.shape[:-1], -1, each).astype(np.uint64) << (np.arange(each, dtype=np.uint64) * bits)
    return torch.from_numpy(parts.sum(-1).astype(np.uint32).view(np.int32).copy())


def codes_of(bits, *shape):
    return RNG.integers(0, 2**bits, shape).astype(np.int64)


def scales_of(dtype, *shape):
    return torch.from_numpy(RNG.uniform(0.01, 0.02, shape)).to(dtype)


def float64(tensor):
    return tensor.to(torch.float64).numpy()


def gptq(bits, group, rows=128, columns=96, order=False, version=2, dtype=torch.float16):
    """Stored tensors of a GPTQ layer (out=rows, in=columns), and its values."""
    groups = -(-columns // group)
    index = np.arange(columns) // group
    if order:
        index = RNG.permutation(index)
    codes, zeros = codes_of(bits, columns, rows), RNG.integers(1, 2**bits, (groups, rows))
    scales = scales_of(dtype, groups, rows)
    stored = {
        "qweight": stream(codes.T, bits).T.contiguous(),
        "qzeros": stream(zeros - (version == 1), bits),
        "scales": scales,
        "g_idx": torch.from_numpy(index.astype(np.int32)),
    }
    return stored, (float64(scales)[index] * (codes - zeros[index])).T


def awq(group, rows=48, columns=64):
    """Stored tensors of an AWQ layer, and its values."""
    codes, zeros = codes_of(4, columns, rows), codes_of(4, columns // group, rows)
    scales = scales_of(torch.float16, columns // group, rows)
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def pack(values):
        return whole(values.reshape(len(values), -1, 8)[..., order].reshape(len(values), -1), 4)

    index = np.arange(columns) // group
    stored = {"qweight": pack(codes), "qzeros": pack(zeros), "scales": scales}
    return stored, (float64(scales)[index] * (codes - zeros[index])).T


def awq_gemv(group, rows=48, columns=256):
    """Stored tensors of an AWQ layer for GEMV: codes along the rows, zeros and scales filled up; and its values."""
    groups = columns // group
    codes, zeros = codes_of(4, rows, columns), codes_of(4, rows, groups)
    scales = scales_of(torch.float16, rows, groups)
    multiple = {32: 4, 64: 2}.get(group, 1)
    words = -(-groups // (8 * multiple)) * multiple
    filled = torch.zeros(rows, words * 8, dtype=torch.float16)
    filled[:, :groups] = scales
    index = np.arange(columns) // group
    padded = np.zeros((rows, words * 8), np.int64)
    padded[:, :groups] = zeros
    stored = {"qweight": whole(codes, 4), "qzeros": whole(padded, 4), "scales": filled}
    return stored, float64(scales)[:, index] * (codes - zeros[:, index])


def mlx(bits, group, *lead, rows=16, columns=128):
    """Stored tensors of an MLX layer, and its values."""
    codes = codes_of(bits, *lead, rows, columns)
    scales, biases = (scales_of(torch.bfloat16, *lead, rows, columns // group) for _ in range(2))
    stored = {"weight": stream(codes, bits).view(torch.uint32), "scales": scales, "biases": biases}
    index = np.arange(columns) // group
    return stored, float64(scales)[..., index] * codes + float64(biases)[..., index]


def mlx_floats(mode, *lead, rows=16, columns=128):
    """Stored tensors of an MLX layer of floats, and its values."""
    if mode == "mxfp8":
        codes = torch.from_numpy(RNG.uniform(-400, 400, (*lead, rows, columns))).to(torch.float8_e4m3fn)
        words, values = codes.view(torch.uint8).view(torch.uint32), float64(codes)
    else:
        codes = codes_of(4, *lead, rows, columns)
        words, values = stream(codes, 4).view(torch.uint32), FP4[codes]
    group = 16 if mode == "nvfp4" else 32
    if mode == "nvfp4":
        scale = torch.from_numpy(RNG.uniform(0.01, 400, (*lead, rows, columns // group))).to(torch.float8_e4m3fn)
        factors = float64(scale)
    else:
        scale = torch.from_numpy(RNG.integers(110, 130, (*lead, rows, columns // group)).astype(np.uint8))
        factors = 2.0 ** (scale.numpy().astype(float) - 127)
    return {"weight": words, "scales": scale.view(torch.uint8)}, values * factors.repeat(group, -1)


def packed_integers(bits, group, *lead, rows=20, columns=64, zero=False, order=False, pack=stream):
    """Stored tensors of compressed-tensors' pack-quantized, and its values."""
    groups = columns // group
    codes = codes_of(bits, *lead, rows, columns)
    zeros = codes_of(bits, *lead, rows, groups) if zero else np.full((*lead, rows, groups), 2 ** (bits - 1))
    scale = scales_of(torch.bfloat16, *lead, rows, groups)
    index = np.arange(columns) // group
    stored = {"weight_packed": pack(codes, bits), "weight_scale": scale, "weight_shape": torch.tensor([rows, columns])}
    if zero:
        stored["weight_zero_point"] = pack(zeros.swapaxes(-1, -2), bits).swapaxes(-1, -2).contiguous()
    if order:
        index = RNG.permutation(index)
        stored["weight_g_idx"] = torch.from_numpy(index.astype(np.int32))
    return stored, (codes - zeros[..., index]) * float64(scale)[..., index]


def nvfp4(*lead, rows=12, columns=64, dividing=True):
    """Codes, scales and overall scale of NVFP4, and the values."""
    codes = codes_of(4, *lead, rows, columns)
    scale = torch.from_numpy(RNG.uniform(1, 400, (*lead, rows, columns // 16))).to(torch.float8_e4m3fn)
    overall = torch.tensor([300.0]) if dividing else torch.tensor(1 / 300)
    packed = torch.from_numpy((codes[..., 0::2] | codes[..., 1::2] << 4).astype(np.uint8))
    factor = float64(scale) / float64(overall).item() if dividing else float64(scale) * float64(overall).item()
    return packed, scale, overall, FP4[codes] * factor.repeat(16, -1)


HQQ = {8: (1, "8bit_u8"), 4: (2, "4bit_u8"), 3: (10, "3bit_32"), 2: (4, "2bit_u8"), 1: (8, "1bit_u8")}


def hqq_packed(codes, bits):
    """Codes (rows, n), several rows in a word, the first part of the rows highest."""
    sharing, _ = HQQ[bits]
    rows = -(-len(codes) // sharing)
    filled = np.zeros((rows * sharing, codes.shape[1]), np.int64)
    filled[: len(codes)] = codes
    words = sum(filled[part * rows : (part + 1) * rows] << bits * (sharing - 1 - part) for part in range(sharing))
    return torch.from_numpy(words.astype(np.int32 if bits == 3 else np.uint8))


def hqq(bits, group, axis, rows=40, columns=64):
    """Codes, scales and zeros of an HQQ layer, what is said of it, and its values."""
    groups = rows * columns // group
    shape = (groups, group) if axis == 1 else (group, groups)
    codes = codes_of(bits, *shape)
    factors = (groups, 1) if axis == 1 else (1, groups)
    scale = scales_of(torch.float32, *factors)
    zero = torch.from_numpy(RNG.uniform(0, 2**bits, factors)).to(torch.float32)
    said = {
        "nbits": bits,
        "group_size": group,
        "shape": [rows, columns],
        "axis": axis,
        "packing": HQQ[bits][1],
        "view_as_float": False,
    }
    values = ((codes - float64(zero)) * float64(scale)).reshape(rows, columns)
    return {"W_q": hqq_packed(codes, bits), "scale": scale, "zero": zero}, said, values


def hqq_beside(said):
    """What is said of a layer as tensors, as transformers' files have it."""
    more = {"quant_scale": False, "quant_zero": False, "compute_dtype": "torch.float32", "offload_meta": False,
            "encoded_state_dict": True, "stores_quant_config": True, "channel_wise": True, "optimize": True,
            "round_zero": False, "unpack_view_dtype": "torch.uint8"}  # fmt: skip
    stored = {}
    for name, value in {**more, **said}.items():
        if isinstance(value, str):
            stored[name] = torch.tensor([ord(letter) for letter in value], dtype=torch.uint8)
        elif isinstance(value, list):
            stored[name] = torch.tensor(value)
        else:
            stored[name] = torch.tensor(int(value), dtype=torch.uint8 if isinstance(value, bool) else torch.int32)
    return stored


def state(quant_type, shape, blocksize, **more):
    """The tensor of bytes in which bitsandbytes keeps what it knows of a layer."""
    fields = {"quant_type": quant_type, "blocksize": blocksize, "shape": list(shape), "dtype": "float32", **more}
    return torch.tensor(list(json.dumps(fields).encode()), dtype=torch.uint8)
