"""MNTP by hand: the whole of it as one plain PyTorch loop, with nothing hidden.

    python examples/by_hand.py MODEL TEXT_FILE [STEPS]

Same blocks, masks and order as ``turncoder mntp``, but a stock causal language model, all logits, and AdamW. A test
holds its losses against those of the trainer.
"""

import sys
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, get_linear_schedule_with_warmup, set_seed

from turncoder.data.corpus import open_corpus
from turncoder.data.masking import MaskedBlocks, Masking, collate
from turncoder.data.packing import prepare_blocks

LENGTH, BATCH, RATE, SEED = 128, 8, 1e-3, 42
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def train(name: str, text: str, steps: int) -> list[float]:
    """Train for ``steps`` and return the loss of each step."""
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)

    # 1. Attention looks both ways (transformers >= 5.2 reads this key)
    model.config.is_causal = False

    # 2. LoRA on the backbone; the head stays frozen
    set_seed(SEED)
    lora = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=TARGETS, task_type="FEATURE_EXTRACTION")
    model.requires_grad_(False)
    model.model = get_peft_model(model.model, lora)

    # 3. Text -> blocks -> masks: 15 % of the tokens, of which 80 % become "_", 10 % random, 10 % stay
    with tempfile.TemporaryDirectory() as folder:
        corpus = open_corpus(file=text)
        blocks, _ = prepare_blocks(corpus=corpus, tokenizer=tokenizer, block_size=LENGTH, folder=Path(folder))
        blank = tokenizer.convert_tokens_to_ids("_")
        special = tuple(tokenizer.all_special_ids)
        masking = Masking(
            mlm_probability=0.15, mask_token_id=blank, vocab_size=len(tokenizer), special_ids=special, seed=SEED
        )
        rows = MaskedBlocks(blocks, masking, epochs=steps * BATCH // len(blocks) + 1)

        # 4. The label at t is predicted from the state at t-1: the shift of any causal language model
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.0)
        schedule = get_linear_schedule_with_warmup(optimizer, 0, steps)
        losses = []
        for step in range(steps):
            batch = collate([rows[step * BATCH + place] for place in range(BATCH)], pad_token_id=0)
            logits_BLV = model(input_ids=batch["input_ids"], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(
                logits_BLV[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100
            )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return losses


if __name__ == "__main__":
    for number, value in enumerate(train(sys.argv[1], sys.argv[2], int((sys.argv[3:] or ["20"])[0])), start=1):
        print(f"step {number}  loss {value:.5f}")
