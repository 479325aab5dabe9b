"""Remake the golden files with torch and transformers; nothing else in the project needs them.

It runs in an environment of its own, pinned by golden-requirements.lock, on the CPU in float32
with eager attention and one thread.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from tests.models import golden_cases, smollm2
from tests.models.golden import DIRECTORY, Golden

MAX_NEW_TOKENS = 64
# Every 97th logit and the 16 largest: enough to see any error, small enough to commit.
SAMPLE_STRIDE, SAMPLE_TOP = 97, 16


def _load(directory: Path) -> Any:
    model, report = AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=torch.float32,
        attn_implementation="eager",
        local_files_only=True,
        output_loading_info=True,
    )
    wrong = {name: found for name, found in report.items() if found}
    if wrong:
        raise RuntimeError(f"{directory} was not loaded whole: {wrong}")
    return model.eval()


def _logits(model: Any, token_ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """[length, vocabulary] of one sequence."""
    with torch.no_grad():
        logits: NDArray[np.float32] = model(torch.from_numpy(token_ids)[None]).logits[0].numpy()
    return logits


def record_tiny(name: str, case: golden_cases.Case) -> Golden:
    """Run one tiny model on a sequence that follows from its name."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest(), "big")
    words = np.random.PCG64(seed).random_raw(case.length)
    token_ids = (words % np.uint64(case.model.vocab_size)).astype(np.int64)
    last = case.length - 1
    positions = np.unique(
        [p for p in (0, 1, last // 2, 63, 64, 100, last - 1, last) if p <= last]
    ).astype(np.int64)
    with tempfile.TemporaryDirectory() as scratch:
        logits = _logits(_load(case.model.write(Path(scratch))), token_ids)
    return Golden(
        name=name,
        model=case.model,
        weights_digest=case.model.digest(),
        window_crossed=case.window_crossed,
        token_ids=token_ids,
        positions=positions,
        logits=logits[positions],
    )


def _sample(position: int, logits: NDArray[np.float32]) -> dict[str, Any]:
    top = np.argsort(-logits, kind="stable")[:SAMPLE_TOP]
    ids = np.union1d(np.arange(0, logits.size, SAMPLE_STRIDE), top)
    values = [float(f"{value:.9g}") for value in logits[ids]]
    return {"position": position, "ids": ids.tolist(), "values": values}


def _render(directory: Path, messages: list[dict[str, str]]) -> str:
    settings = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(settings["chat_template"]).render(
        messages=messages, add_generation_prompt=True
    )


def record_conversation(
    name: str, messages: list[dict[str, str]], directory: Path, model: Any
) -> dict[str, Any]:
    """Answer greedily and keep the answer with a sample of the logits at its two ends."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    prompt = _render(directory, messages)
    prompt_ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    with torch.no_grad():
        answer = model.generate(
            torch.tensor([prompt_ids]),
            attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.int64),
            do_sample=False,
            max_new_tokens=MAX_NEW_TOKENS,
        )
    ids = np.array(answer[0].tolist(), dtype=np.int64)
    output_ids = ids[len(prompt_ids) :].tolist()
    logits = _logits(model, ids)[len(prompt_ids) - 1 :]
    if logits[:-1].argmax(axis=1).tolist() != output_ids:
        raise RuntimeError(f"{name}: one pass over the answer chooses other tokens: a near tie")
    best = np.sort(logits[:-1], axis=1)[:, -2:]
    return {
        "name": name,
        "messages": messages,
        "prompt": prompt,
        "prompt_ids": prompt_ids,
        "output_ids": output_ids,
        "text": tokenizer.decode(output_ids),
        "finished": output_ids[-1] == model.config.eos_token_id,
        "margin": float(f"{(best[:, 1] - best[:, 0]).min():.3g}"),
        "logits": [
            _sample(len(prompt_ids) - 1, logits[0]),
            _sample(ids.size - 1, logits[-1]),
        ],
    }


def record_smollm2() -> dict[str, Any]:
    """All conversations with the converted model."""
    directory = smollm2.directory()
    model = _load(directory)
    with (directory / "model.safetensors").open("rb") as weights:
        digest = hashlib.file_digest(weights, "sha256").hexdigest()
    return {
        "weights_digest": digest,
        "conversations": [
            record_conversation(name, messages, directory, model)
            for name, messages in golden_cases.CONVERSATIONS.items()
        ],
    }


def main() -> None:
    """Write all golden files anew and remove those that have no case any more."""
    torch.set_num_threads(1)
    DIRECTORY.mkdir(exist_ok=True)
    kept = {DIRECTORY / "smollm2.json"}
    for name, case in golden_cases.CASES.items():
        golden = record_tiny(name, case)
        kept.add(golden.save(DIRECTORY))
        spread = golden.logits.std(axis=1).mean()
        print(f"{name}: {case.length} tokens, logits spread by {spread:.2f}")
    for path in set(DIRECTORY.iterdir()) - kept:
        path.unlink()
    stored = record_smollm2()
    text = json.dumps(stored, ensure_ascii=False, separators=(",", ":"))
    # A line for each conversation keeps the file and its diffs readable.
    text = text.replace('{"name":', '\n{"name":')
    (DIRECTORY / "smollm2.json").write_text(text + "\n", encoding="utf-8")
    for entry in stored["conversations"]:
        print(f"{entry['name']}: margin {entry['margin']}, {entry['text']!r}")


if __name__ == "__main__":
    main()
