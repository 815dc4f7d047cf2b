"""ModelConfig: the numbers that describe a model, in Hugging Face's names.

Readers (``models/*.py``) translate every spelling found in files (GGUF keys, old config.json keys)
into these names at the door; nothing behind them knows another one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RopeConfig:
    """One rotary position embedding: how angles follow from positions.

    Attributes
    ----------
    theta : float
        Base of the frequencies.
    rotary_dim : int
        How many leading dimensions of a head are rotated (even).
    scaling : str
        "none", "linear", "llama3", "yarn" or "longrope".
    factor, low_freq_factor, high_freq_factor, beta_fast, beta_slow, truncate, mscale,
    mscale_all_dim, attention_factor
        Parameters of the scaling, as transformers names them.
    original_max_position_embeddings : int
        Context the model was trained with before scaling.
    short_factor, long_factor : tuple of float
        LongRoPE: one divisor per frequency, [rotary_dim / 2].
    freq_factors : tuple of float
        Divisors given by the file itself (GGUF ``rope_freqs.weight``), [rotary_dim / 2] or empty.
    """

    theta: float = 10000.0
    rotary_dim: int = 0
    scaling: str = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    attention_factor: float | None = None
    original_max_position_embeddings: int = 0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    freq_factors: tuple[float, ...] = ()


@dataclass(frozen=True)
class ModelConfig:
    """What the rest of fastllm needs to know of a model besides its layers."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    layer_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    name: str = ""
