"""Text and speech networks of the `transformers` library with small random weights; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as t
from torch import nn

Network = tuple[nn.Module, Any]

VOCABULARY, LENGTH = 99, 12
PLAIN = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DECODER = {**PLAIN, "use_cache": False}
GROUPED = {**DECODER, "num_key_value_heads": 4, "head_dim": 8}


def tokens(length: int = LENGTH) -> torch.Tensor:
    """Two sentences of token numbers, shape [2, length]."""
    return torch.randint(3, VOCABULARY, (2, length))


def text(name: str, kind: str = "ForSequenceClassification", **settings: Any) -> Callable[[], Network]:
    """A builder of a network of the given family that reads tokens and their mask."""

    def build() -> Network:
        config = getattr(t, f"{name}Config")(**settings)
        ids = tokens()
        return getattr(t, f"{name}{kind}")(config), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    return build


def decoder(name: str, kind: str = "ForCausalLM", **settings: Any) -> Callable[[], Network]:
    """A builder of a language model that reads tokens only."""

    def build() -> Network:
        config = getattr(t, f"{name}Config")(**settings)
        return getattr(t, f"{name}{kind}")(config), {"input_ids": tokens()}

    return build


def encoder_decoder(name: str, kind: str = "ForConditionalGeneration", **settings: Any) -> Callable[[], Network]:
    """A builder of a network that reads one sentence and continues another."""

    def build() -> Network:
        config = getattr(t, f"{name}Config")(**settings)
        example = {"input_ids": tokens(), "decoder_input_ids": tokens(8)}
        return getattr(t, f"{name}{kind}")(config), example

    return build


def whisper() -> Network:
    """Whisper: convolutions over a spectrogram, encoder, decoder with cross-attention."""
    config = t.WhisperConfig(**BART, num_mel_bins=16, max_source_positions=20, max_target_positions=16)
    example = {"input_features": torch.randn(2, 16, 40), "decoder_input_ids": tokens(8)}
    return t.WhisperForConditionalGeneration(config), example


SPEECH = {
    **PLAIN,
    "vocab_size": 24,
    "conv_dim": (16, 16, 16),
    "conv_stride": (5, 2, 2),
    "conv_kernel": (10, 3, 3),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "mask_time_prob": 0.0,
    "layerdrop": 0.0,
}


def speech(name: str, **settings: Any) -> Callable[[], Network]:
    """A builder of a recogniser of waveforms with a CTC head."""

    def build() -> Network:
        config = getattr(t, f"{name}Config")(**{**SPEECH, **settings})
        return getattr(t, f"{name}ForCTC")(config), {"input_values": torch.randn(2, 800)}

    return build


BART = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "use_cache": False,
    "decoder_start_token_id": 0,
}
GPT2 = {"vocab_size": VOCABULARY, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4, "use_cache": False}
SMALL_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
MOBILE = {"embedding_size": 24, "intra_bottleneck_size": 24, "num_feedforward_networks": 2}

SEQUENCE: dict[str, Callable[[], Network]] = {
    "bert": text("Bert", **PLAIN),
    "bert_mlm": text("Bert", "ForMaskedLM", **PLAIN),
    "distilbert": text(
        "DistilBert", vocab_size=VOCABULARY, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=32
    ),
    "roberta": text("Roberta", **PLAIN),
    "albert": text("Albert", **PLAIN, embedding_size=24),
    "deberta": text(
        "Deberta", **PLAIN, pos_att_type=["c2p", "p2c"], relative_attention=True, position_biased_input=False
    ),
    "deberta_v2": text(
        "DebertaV2", **PLAIN, pos_att_type=["c2p", "p2c"], relative_attention=True, position_biased_input=False
    ),
    "electra": text("Electra", **PLAIN, embedding_size=24),
    "mobilebert": text("MobileBert", **PLAIN, **MOBILE),
    "mpnet": text("MPNet", **PLAIN),
    "squeezebert": text("SqueezeBert", **PLAIN, embedding_size=32),
    "modernbert": text("ModernBert", **PLAIN, global_attn_every_n_layers=2, local_attention=8),
    "gpt2": decoder("GPT2", "LMHeadModel", **GPT2, **SMALL_IDS),
    "opt": decoder("OPT", **{**DECODER, "ffn_dim": 64, "word_embed_proj_dim": 32}),
    "gpt_neox": decoder("GPTNeoX", **DECODER),
    "bloom": decoder("Bloom", vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, use_cache=False, **SMALL_IDS),
    "llama": decoder("Llama", **{**GROUPED, "num_attention_heads": 8, "head_dim": 4}),
    "mistral": decoder("Mistral", **{**GROUPED, "num_attention_heads": 8, "head_dim": 4}, sliding_window=8),
    "qwen2": decoder("Qwen2", **GROUPED),
    "qwen3": decoder("Qwen3", **GROUPED),
    "gemma": decoder("Gemma", **GROUPED),
    "gemma2": decoder("Gemma2", **GROUPED),
    "phi": decoder("Phi", **DECODER),
    "phi3": decoder("Phi3", **DECODER),
    "falcon": decoder("Falcon", **DECODER),
    "gptj": decoder("GPTJ", **GPT2, rotary_dim=4, **SMALL_IDS),
    "gpt_neo": decoder(
        "GPTNeo",
        vocab_size=VOCABULARY,
        max_position_embeddings=32,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=8,
        use_cache=False,
        **SMALL_IDS,
    ),
    "olmo2": decoder("Olmo2", **DECODER),
    "cohere": decoder("Cohere", **DECODER),
    "t5": encoder_decoder("T5", **T5),
    "bart": encoder_decoder("Bart", **BART, max_position_embeddings=32),
    "marian": encoder_decoder("Marian", "MTModel", **BART, max_position_embeddings=32),
    "whisper": whisper,
    "wav2vec2": speech("Wav2Vec2"),
    "hubert": speech("Hubert", feat_extract_norm="layer", conv_bias=True, do_stable_layer_norm=True),
    "mamba": decoder(
        "Mamba", vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=8, use_cache=False, **SMALL_IDS
    ),
}
