"""Tokens a second of transformers with a static cache and a compiled step: a program of its own.

`python transformers_speed.py MODEL SLOTS...` prints JSON. It runs in the Python that has torch,
with nothing of this project.
"""

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM, StaticCache

PROMPT, LENGTH, STEPS = 800, 1024, 200


def main() -> None:
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16).cuda().eval()
    step = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)
    for slots in map(int, sys.argv[2:]):
        torch.compiler.reset()
        cache = StaticCache(config=model.config, max_cache_len=LENGTH)
        ids = torch.randint(0, 1000, (slots, PROMPT), device="cuda")
        with torch.no_grad():
            at = torch.arange(PROMPT, device="cuda")
            logits = model(ids, past_key_values=cache, cache_position=at, logits_to_keep=1).logits
            token = logits[:, -1:].argmax(-1)
            at = at[-1:] + 1
            for i in range(STEPS + 10):
                if i == 10:
                    torch.cuda.synchronize()
                    began = time.perf_counter()
                out = step(
                    token.clone(), past_key_values=cache, cache_position=at, logits_to_keep=1
                )
                token = out.logits[:, -1:].argmax(-1)
                at = at + 1
            torch.cuda.synchronize()
        seconds = (time.perf_counter() - began) / STEPS
        print(json.dumps({"slots": slots, "tokensPerSecond": slots / seconds}), flush=True)


if __name__ == "__main__":
    main()
