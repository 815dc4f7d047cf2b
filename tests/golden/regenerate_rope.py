"""Store what transformers' rope functions return for a few configs, in rope.json.

Run from the root of the repository: ``python -m tests.golden.regenerate_rope``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

BASE = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 256}
PAIRS = 8
CONFIGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_theta": 10000.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "llama3": {
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
    },
    "yarn": {
        "rope_theta": 1000000.0,
        "rope_scaling": {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096,
        },
    },
    "yarn-betas": {
        "rope_theta": 10000.0,
        "rope_scaling": {
            "rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 64,
            "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.25,
        },
    },
    "yarn-short": {
        "rope_theta": 10000.0,
        "rope_scaling": {
            "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8,
        },
    },
    "yarn-mscale-pair": {
        "rope_theta": 10000.0,
        "rope_scaling": {
            "rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 32,
            "mscale": 1.0, "mscale_all_dim": 1.0,
        },
    },
    "yarn-mscale-unlike": {
        "rope_theta": 10000.0,
        "rope_scaling": {
            "rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 64,
            "mscale": 0.707, "mscale_all_dim": 1.5,
        },
    },
    "yarn-mscale-alone": {
        "rope_theta": 10000.0,
        "rope_scaling": {
            "rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 32,
            "mscale": 2.0,
        },
    },
    "yarn-mscale-and-attention": {
        "rope_theta": 10000.0,
        "rope_scaling": {
            "rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 32,
            "mscale": 2.0, "mscale_all_dim": 1.0, "attention_factor": 0.75,
        },
    },
    "yarn-not-truncated": {
        "rope_theta": 10000.0,
        "rope_scaling": {
            "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 128,
            "truncate": False,
        },
    },
    "yarn-parameters": {
        "rope_parameters": {
            "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 128,
            "rope_theta": 5000.0, "beta_fast": 20.0, "beta_slow": 3.0, "partial_rotary_factor": 0.5,
        },
    },
    "yarn-outer-original": {
        "rope_theta": 10000.0, "original_max_position_embeddings": 64,
        "rope_scaling": {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128,
        },
    },
    "linear-below-one": {
        "rope_theta": 10000.0, "rope_scaling": {"rope_type": "linear", "factor": 0.5},
    },
    "yarn-below-one": {
        "rope_theta": 10000.0,
        "rope_scaling": {
            "rope_type": "yarn", "factor": 0.5, "original_max_position_embeddings": 64,
            "mscale": 2.0, "mscale_all_dim": 1.0,
        },
    },
    "longrope-factors": {
        "rope_theta": 10000.0,
        "rope_parameters": {
            "rope_type": "longrope", "short_factor": [1.0] * PAIRS, "long_factor": [2.0] * PAIRS,
            "original_max_position_embeddings": 32, "factor": 4.0, "attention_factor": 1.2,
        },
    },
    "longrope": {
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 32,
        "rope_scaling": {
            "rope_type": "longrope", "short_factor": [1.0 + 0.1 * i for i in range(PAIRS)],
            "long_factor": [2.0 + i * i for i in range(PAIRS)],
            "original_max_position_embeddings": 32,
        },
    },
}  # fmt: skip


def main() -> None:
    """Compute and store all of them."""
    result = []
    for name, more in CONFIGS.items():
        for n_ctx in (16, 200) if name.startswith("longrope") else (16,):
            raw = json.loads(json.dumps({**BASE, **more}))
            config = LlamaConfig(**raw)
            function = ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]]
            frequencies, attention_factor = function(config, "cpu", seq_len=n_ctx)
            result.append(
                {
                    "name": f"{name}-{n_ctx}",
                    "config": {**BASE, **more},
                    "n_ctx": n_ctx,
                    "inv_freq": [float(number) for number in frequencies],
                    "attention_factor": float(attention_factor),
                }
            )
    text = json.dumps(result, indent=1) + "\n"
    (Path(__file__).parent / "rope.json").write_text(text)


if __name__ == "__main__":
    main()
