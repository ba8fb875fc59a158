"""Our weights in torchaudio's conformer: the same function by other code."""

import torch


def copy_into_layer(block, layer):
    """Our block's weights into torchaudio's layer; every parameter of either is used once."""
    ours, theirs = dict(block.named_parameters()), dict(layer.named_parameters())
    names = {
        "convolution.norm": "conv_module.layer_norm",
        "convolution.expand": "conv_module.sequential.0",
        "convolution.depthwise": "conv_module.sequential.2",
        "convolution.batch_norm": "conv_module.sequential.3",
        "convolution.project": "conv_module.sequential.5",
        "attention.norm": "self_attn_layer_norm",
        "attention.project": "self_attn.out_proj",
        "norm": "final_layer_norm",
    }
    names |= {f"feed_forward_in.{i}": f"ffn1.sequential.{i}" for i in (0, 1, 4)}
    names |= {f"feed_forward_out.{i}": f"ffn2.sequential.{i}" for i in (0, 1, 4)}
    pairs = {f"{a}.{p}": f"{b}.{p}" for a, b in names.items() for p in ("weight", "bias")}
    pairs["attention.query_key_value.weight"] = "self_attn.in_proj_weight"
    pairs["attention.query_key_value.bias"] = "self_attn.in_proj_bias"
    assert set(pairs) == set(ours)
    assert set(pairs.values()) == set(theirs)
    with torch.no_grad():
        for mine, other in pairs.items():
            theirs[other].copy_(ours[mine].view_as(theirs[other]))
