"""How the weights under examples/models came to be: train the tiny target, distil the tiny draft from it.

    .venv/bin/python hack/train_tiny_pair.py --gsm8k train.jsonl --minutes 25 --out build/tiny-pair

Text: GSM8K's training split (MIT; one JSON object a line with `question` and `answer`, fetched by hand) and the
sources of the running Python's standard library (PSF licence). Needs torch, transformers, tokenizers: `make env`
has them. The pair that ships took about 25 minutes for the target and half of that for the draft on 2 cores.
Training runs by the clock, so no two runs give the same weights. Not part of any check or test. The result is
written beside, never over, examples/models; the chat template there is written by hand.
"""

import argparse
import glob
import json
import math
import random
import sysconfig
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCAB = 4096


def documents(gsm8k: Path) -> list[str]:
    docs = []
    for line in gsm8k.read_text().splitlines():
        item = json.loads(line)
        docs.append(f"Question: {item['question']}\nAnswer: {item['answer']}")
    stdlib = sysconfig.get_paths()["stdlib"]
    for pattern in ("*.py", "json/*.py", "email/*.py", "asyncio/*.py"):
        for name in sorted(glob.glob(f"{stdlib}/{pattern}")):
            docs.append(Path(name).read_text(errors="ignore"))
    return docs


def byte_bpe(docs: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        docs, trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    )
    return tokenizer


def config(layers: int, hidden: int, heads: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=hidden,
        intermediate_size=int(hidden * 8 / 3) // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=64,
        max_position_embeddings=4096,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=True,
        rope_theta=10000.0,
    )


def train(
    cfg: LlamaConfig,
    data: torch.Tensor,
    minutes: float,
    lr: float,
    teacher: LlamaForCausalLM | None = None,
    batch: int = 16,
    length: int = 256,
) -> LlamaForCausalLM:
    """Next-token loss, or KL to the teacher's distribution when one is given; cosine schedule over wall time."""
    model = LlamaForCausalLM(cfg)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.1)
    start, step = time.time(), 0
    while (done := (time.time() - start) / (minutes * 60)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (step + 1) / 50) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))
        at = torch.randint(0, len(data) - length - 1, (batch,))
        x = torch.stack([data[i : i + length + 1] for i in at]).long()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(x[:, :-1]).logits.float()
            if teacher is None:
                loss = nn.functional.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten())
            else:
                with torch.no_grad():
                    want = teacher(x[:, :-1]).logits.float().log_softmax(-1)
                kl = nn.functional.kl_div(logits.log_softmax(-1), want, log_target=True, reduction="none")
                loss = kl.sum(-1).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % 50 == 0:
            print(f"step {step} loss {loss.item():.3f} {done:.0%}", flush=True)
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gsm8k", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--out", type=Path, default=Path("build/tiny-pair"))
    args = parser.parse_args()
    torch.manual_seed(0)
    random.seed(0)
    docs = documents(args.gsm8k)
    bpe = byte_bpe(docs)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")
    ids = [i for d in random.sample(docs, len(docs)) for i in (0, *bpe.encode(d).ids, 1)]
    data = torch.tensor(ids, dtype=torch.int32)
    target = train(config(4, 256, 4), data, args.minutes, 3e-3)
    draft = train(config(1, 128, 2), data, args.minutes / 2, 4e-3, teacher=target)
    for name, model in (("tiny-target", target), ("tiny-draft", draft)):
        model.to(torch.bfloat16).save_pretrained(args.out / name)
        tokenizer.save_pretrained(args.out / name)


if __name__ == "__main__":
    main()
