"""The architectures of the transformers package, made from tiny configurations: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import transformers
from tests.corpus.architecture import BATCH, SQUARES, Architecture, image, tokens
from torch import Tensor, nn

TRANSFORMERS = "transformers"
CLASSES = 5
TEXT = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "num_labels": CLASSES,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": CLASSES,
}


class Answer(nn.Module):
    """The one tensor of a model's answer that is trained against; inputs go in by position."""

    def __init__(self, model: nn.Module, inputs: tuple[str, ...], field: str, *, more: Mapping[str, object]) -> None:
        super().__init__()
        self.model, self.inputs, self.field, self.more = model, inputs, field, dict(more)

    def forward(self, *tensors: Tensor) -> Tensor:
        return getattr(self.model(**dict(zip(self.inputs, tensors, strict=True)), **self.more), self.field)


def text() -> dict[str, Tensor]:
    return {"input_ids": tokens()["tokens"], "attention_mask": torch.ones(BATCH, 12, dtype=torch.int64)}


def ids() -> dict[str, Tensor]:
    return {"input_ids": tokens()["tokens"]}


def pixels() -> dict[str, Tensor]:
    return {"pixel_values": image()["image"]}


def made(
    kind: str,
    config: Mapping[str, object],
    inputs: Callable[[], dict[str, Tensor]],
    field: str = "logits",
    **more: object,
) -> Callable[[], tuple[nn.Module, dict[str, Tensor]]]:
    """How to make a model of the package from its class and what its configuration is told."""

    def make() -> tuple[nn.Module, dict[str, Tensor]]:
        cls = getattr(transformers, kind)
        settings = cls.config_class(**config)
        settings._attn_implementation = "eager"  # the exporters can't see through every fused kernel
        settings.return_dict = True
        given = inputs()
        return Answer(cls(settings), tuple(given), field, more=more), given

    return make


def entry(name: str, make: Callable[[], tuple[nn.Module, Mapping[str, Tensor]]], **more: object) -> Architecture:
    return Architecture(name, TRANSFORMERS, make, **more)  # type: ignore[arg-type]


NO_CACHE = {"use_cache": False}
_ROPE = {**TEXT, "num_key_value_heads": 1, "head_dim": 8}
_STAGES = {"num_labels": CLASSES, "image_size": 32}

PRETRAINED = (
    entry("BERT", made("BertForSequenceClassification", TEXT, text)),
    entry("RoBERTa", made("RobertaForSequenceClassification", TEXT, text)),
    entry(
        "DistilBERT",
        made(
            "DistilBertForSequenceClassification",
            {"vocab_size": 50, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "num_labels": CLASSES},
            text,
        ),
    ),
    entry("ALBERT", made("AlbertForSequenceClassification", {**TEXT, "embedding_size": 8}, text), tied=True),
    entry("ELECTRA", made("ElectraForSequenceClassification", {**TEXT, "embedding_size": 8}, text)),
    entry(
        "MobileBERT",
        made(
            "MobileBertForSequenceClassification",
            {**TEXT, "embedding_size": 8, "intra_bottleneck_size": 8, "true_hidden_size": 8},
            text,
        ),
    ),
    entry(
        "SqueezeBERT",
        made(
            "SqueezeBertForSequenceClassification",
            {**TEXT, "embedding_size": 16, "q_groups": 2, "k_groups": 2, "v_groups": 2, "intermediate_groups": 2},
            text,
        ),
    ),
    entry(
        "DeBERTa v2",
        made(
            "DebertaV2ForSequenceClassification",
            {**TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False},
            text,
        ),
        tied=True,
    ),
    entry("MPNet", made("MPNetForSequenceClassification", TEXT, text)),
    entry("I-BERT", made("IBertForSequenceClassification", TEXT, text)),
    entry("FNet", made("FNetForSequenceClassification", TEXT, ids)),
    entry("ConvBERT", made("ConvBertForSequenceClassification", {**TEXT, "embedding_size": 16, "head_ratio": 1}, text)),
    entry(
        "Funnel",
        made(
            "FunnelForSequenceClassification",
            {"vocab_size": 50, "block_sizes": [1, 1], "d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 32}
            | {"num_labels": CLASSES},
            text,
        ),
    ),
    entry(
        "Longformer",
        made("LongformerForSequenceClassification", {**TEXT, "attention_window": 4, "sep_token_id": 2}, text),
    ),
    entry(
        "T5 encoder",
        made(
            "T5EncoderModel",
            {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
            text,
            "last_hidden_state",
        ),
        loss=SQUARES,
        tied=True,
    ),
    entry(
        "GPT-2",
        made(
            "GPT2ForSequenceClassification",
            {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "num_labels": CLASSES}
            | {"pad_token_id": 0},
            text,
            **NO_CACHE,
        ),
    ),
    entry(
        "OPT",
        made("OPTModel", {**TEXT, "ffn_dim": 32, "word_embed_proj_dim": 16}, text, "last_hidden_state", **NO_CACHE),
        loss=SQUARES,
    ),
    entry("LLaMA", made("LlamaForSequenceClassification", _ROPE, text, **NO_CACHE)),
    entry("Mistral", made("MistralForSequenceClassification", {**_ROPE, "sliding_window": 8}, text, **NO_CACHE)),
    entry("Qwen 3", made("Qwen3ForSequenceClassification", _ROPE, text, **NO_CACHE)),
    entry("Gemma 2", made("Gemma2Model", _ROPE, text, "last_hidden_state", **NO_CACHE), loss=SQUARES),
    entry("GPT-NeoX", made("GPTNeoXModel", TEXT, text, "last_hidden_state", **NO_CACHE), loss=SQUARES),
    entry(
        "BLOOM",
        made("BloomModel", {**TEXT, "n_layer": 2, "n_head": 2}, text, "last_hidden_state", **NO_CACHE),
        loss=SQUARES,
    ),
    entry("Phi", made("PhiModel", TEXT, text, "last_hidden_state", **NO_CACHE), loss=SQUARES),
    entry(
        "XLNet",
        made(
            "XLNetForSequenceClassification",
            {"vocab_size": 50, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32, "num_labels": CLASSES},
            text,
        ),
    ),
    entry(
        "Mamba",
        made(
            "MambaModel",
            {"vocab_size": 50, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "time_step_rank": 2},
            ids,
            "last_hidden_state",
            **NO_CACHE,
        ),
        loss=SQUARES,
    ),
    entry("ViT", made("ViTForImageClassification", VISION, pixels)),
    entry("DeiT", made("DeiTForImageClassification", VISION, pixels)),
    entry("BEiT", made("BeitForImageClassification", VISION, pixels)),
    entry("DINOv2", made("Dinov2ForImageClassification", VISION, pixels)),
    entry(
        "Swin",
        made(
            "SwinForImageClassification",
            {**_STAGES, "patch_size": 4, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
            pixels,
        ),
    ),
    entry(
        "ConvNeXt",
        made(
            "ConvNextForImageClassification",
            {**_STAGES, "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
            pixels,
        ),
    ),
    entry(
        "ResNet",
        made(
            "ResNetForImageClassification",
            {"num_labels": CLASSES, "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2]},
            pixels,
        ),
    ),
    entry(
        "RegNet",
        made(
            "RegNetForImageClassification",
            {"num_labels": CLASSES, "embedding_size": 8, "hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]}
            | {"groups_width": 4},
            pixels,
        ),
    ),
    entry(
        "MobileNet v2 (TensorFlow's)",
        made("MobileNetV2ForImageClassification", {**_STAGES, "depth_multiplier": 0.2, "min_depth": 4}, pixels),
    ),
    entry(
        "EfficientNet B0",
        made(
            "EfficientNetForImageClassification",
            {**_STAGES, "width_coefficient": 0.1, "depth_coefficient": 0.2, "hidden_dim": 128},
            pixels,
        ),
    ),
    entry(
        "SegFormer",
        made(
            "SegformerForImageClassification",
            {"num_labels": CLASSES, "hidden_sizes": [8, 16], "num_encoder_blocks": 2, "depths": [1, 1]}
            | {"sr_ratios": [2, 1], "patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [1, 2]}
            | {"mlp_ratios": [2, 2]},
            pixels,
        ),
    ),
    entry(
        "PoolFormer",
        made(
            "PoolFormerForImageClassification",
            {"num_labels": CLASSES, "hidden_sizes": [8, 16], "num_encoder_blocks": 2, "depths": [1, 1]}
            | {"patch_sizes": [7, 3], "strides": [4, 2], "padding": [2, 1]},
            pixels,
        ),
    ),
    entry(
        "LeViT",
        made(
            "LevitForImageClassification",
            {**_STAGES, "image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 3, 4]}
            | {"depths": [1, 1, 1], "key_dim": [8, 8, 8]},
            lambda: {"pixel_values": image(size=64)["image"]},
        ),
    ),
    entry(
        "VideoMAE",
        made(
            "VideoMAEForVideoClassification",
            {**VISION, "num_frames": 4, "tubelet_size": 2},
            lambda: {"pixel_values": torch.randn(BATCH, 4, 3, 32, 32)},
        ),
    ),
    entry("SigLIP vision", made("SiglipVisionModel", VISION, pixels, "pooler_output"), loss=SQUARES, tied=True),
    entry(
        "MobileViT",
        made(
            "MobileViTForImageClassification",
            {"num_labels": CLASSES, "hidden_sizes": [8, 12, 16], "neck_hidden_sizes": [4, 4, 8, 8, 12, 16, 32]}
            | {"image_size": 64, "num_attention_heads": 2},
            lambda: {"pixel_values": image(size=64)["image"]},
        ),
    ),
    entry(
        "CLIP text",
        made("CLIPTextModel", {**TEXT, "projection_dim": 8}, text, "pooler_output"),
        loss=SQUARES,
    ),
    entry(
        "CLIP vision", made("CLIPVisionModel", {**VISION, "projection_dim": 8}, pixels, "pooler_output"), loss=SQUARES
    ),
    entry(
        "Wav2Vec2",
        made(
            "Wav2Vec2ForSequenceClassification",
            {**TEXT, "conv_dim": [8, 8], "conv_kernel": [10, 3], "conv_stride": [5, 2], "num_feat_extract_layers": 2}
            | {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8},
            lambda: {"input_values": torch.randn(BATCH, 200)},
        ),
    ),
    entry(
        "HuBERT",
        made(
            "HubertForSequenceClassification",
            {**TEXT, "conv_dim": [8, 8], "conv_kernel": [10, 3], "conv_stride": [5, 2], "num_feat_extract_layers": 2}
            | {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8},
            lambda: {"input_values": torch.randn(BATCH, 200)},
        ),
    ),
    entry(
        "Whisper encoder",
        made(
            "WhisperForAudioClassification",
            {"vocab_size": 60, "d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
            | {"num_mel_bins": 8, "max_source_positions": 20, "num_labels": CLASSES, "classifier_proj_size": 8}
            | {"decoder_layers": 1, "decoder_attention_heads": 2, "pad_token_id": 0, "decoder_start_token_id": 1},
            lambda: {"input_features": torch.randn(BATCH, 8, 40)},
        ),
    ),
    entry(
        "Audio spectrogram transformer",
        made(
            "ASTForAudioClassification",
            {**TEXT, "patch_size": 4, "max_length": 16, "num_mel_bins": 8, "frequency_stride": 4, "time_stride": 4},
            lambda: {"input_values": torch.randn(BATCH, 16, 8)},
        ),
    ),
    entry(
        "PatchTST",
        made(
            "PatchTSTForRegression",
            {"num_input_channels": 2, "context_length": 24, "patch_length": 4, "patch_stride": 4, "d_model": 16}
            | {"num_attention_heads": 2, "num_hidden_layers": 2, "ffn_dim": 32, "num_targets": 3, "loss": "mse"}
            | {"use_cls_token": True},
            lambda: {"past_values": torch.randn(BATCH, 24, 2)},
            "regression_outputs",
        ),
        loss=SQUARES,
    ),
)
