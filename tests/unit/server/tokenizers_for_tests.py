"""Two kinds of tokenizer: bytes in a printable alphabet, and words with a fallback to bytes."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from llmengine_server import tokenizer as ours
from tests.models import tiny_tokenizer


def byte_level(*, adds_bos: bool = True) -> ours.Tokenizer:
    """The tiny models' tokenizer."""
    return ours.Tokenizer(
        Tokenizer.from_str(tiny_tokenizer.tokenizer_json(adds_bos=adds_bos)),
        bos_id=tiny_tokenizer.BOS_ID,
        eos_ids=frozenset({tiny_tokenizer.EOS_ID}),
    )


def byte_fallback() -> ours.Tokenizer:
    """Like Llama 2: a space is part of the word, unknown characters become <0xNN> tokens."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += ["▁", "▁the", "▁cat", "▁sat", *"abcdefghijklmnopqrstuvwxyz", "."]
    model = models.BPE(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[],
        byte_fallback=True,
        unk_token="<unk>",
    )
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<s>", "</s>")])
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return ours.Tokenizer(tokenizer, bos_id=1, eos_ids=frozenset({2}))
