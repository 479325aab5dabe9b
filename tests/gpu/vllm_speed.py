"""Tokens a second of vLLM's own decode steps: a program of its own.

`python vllm_speed.py MODEL SLOTS...` prints JSON. It runs in the Python that has vLLM, with nothing
of this project. A step's time is what 200 more tokens of every sequence take.
"""

import json
import sys
import time

import torch
from vllm import LLM, SamplingParams

PROMPT, LENGTH, STEPS = 800, 1024, 200


def seconds(llm: LLM, prompts: list[dict[str, list[int]]], tokens: int) -> float:
    """The best of three."""
    asked = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        answers = llm.generate(prompts, asked, use_tqdm=False)
        best = min(best, time.perf_counter() - began)
        assert all(len(answer.outputs[0].token_ids) == tokens for answer in answers)
    return best


def main() -> None:
    counts = [int(slots) for slots in sys.argv[2:]]
    llm = LLM(
        sys.argv[1],
        dtype="bfloat16",
        max_model_len=LENGTH,
        max_num_seqs=max(counts),
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
        compilation_config={"cudagraph_capture_sizes": counts},
    )
    for slots in counts:
        numbers = torch.randint(0, 1000, (slots, PROMPT)).tolist()
        prompts = [{"prompt_token_ids": tokens} for tokens in numbers]
        first, all_of_them = seconds(llm, prompts, 1), seconds(llm, prompts, STEPS + 1)
        step = (all_of_them - first) / STEPS
        print(json.dumps({"slots": slots, "tokensPerSecond": slots / step}), flush=True)


if __name__ == "__main__":
    main()
