"""MNTP by hand: the whole of it as one plain PyTorch loop, with nothing hidden.

    python examples/by_hand.py MODEL TEXT_FILE STEPS

Every weight of a stock causal model trains. turncoder gives two functions of the seed: which tokens are masked, and in
which order rows are seen. Legend: B rows, L positions, V vocabulary. A test holds the losses against those of

    turncoder mntp --model_name_or_path MODEL --train_file TEXT_FILE --validation_file TEXT_FILE --no-do_eval
        --train_mode full --lr_scheduler_type constant --learning_rate 1e-3 --max_steps STEPS
        --max_seq_length 128 --per_device_train_batch_size 8 --logging_steps 1 --output RUN
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

from turncoder.data.batching import EpochOrder
from turncoder.data.masking import Masking

LENGTH, BATCH, RATE, SEED = 128, 8, 1e-3, 42


def train(name: str, path: str, steps: int) -> Iterator[float]:
    """Train for ``steps`` and yield the loss of each."""
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)

    # 1. Conversion: attention looks both ways (transformers >= 5.2 reads this key)
    model.config.is_causal = False
    if not model.config.tie_word_embeddings:  # the head stays as it is, unless it is the embeddings
        model.get_output_embeddings().requires_grad_(False)

    # 2. Text: documents one after the other, cut every LENGTH tokens; which document a token belongs to
    lines = [line for line in Path(path).read_text(encoding="utf8").split("\n") if line.strip()]
    documents = [torch.tensor(ids) for ids in tokenizer(lines)["input_ids"]]
    numbers = [torch.full_like(ids, number) for number, ids in enumerate(documents)]
    rows = list(zip(torch.cat(documents).split(LENGTH), torch.cat(numbers).split(LENGTH), strict=True))

    # 3. Masks: 15 % of the tokens are predicted, of which 80 % become "_", 10 % random, 10 % stay
    blank, special = tokenizer.convert_tokens_to_ids("_"), tuple(tokenizer.all_special_ids)
    masking = Masking(0.15, blank, vocab_size=len(tokenizer), special_ids=special, seed=SEED)
    order = EpochOrder(len(rows), SEED)

    # 4. The loop
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.0)
    for step in range(steps):
        batch = []
        for item in range(step * BATCH, (step + 1) * BATCH):
            epoch, place = divmod(item, len(rows))
            tokens, document = rows[order(epoch, place)]
            masked = masking.corrupt(tokens.numpy(), epoch, order(epoch, place))
            batch.append((*map(torch.from_numpy, masked), document))
        inputs, labels, places = zip(*batch, strict=True)
        labels_BL, places_BL = pad_sequence(labels, True, -100), pad_sequence(places, True, -1)

        # Documents that share a row do not see each other, and the state before one knows nothing of it
        same_BLL = places_BL[:, :, None] == places_BL[:, None, :]
        positions_BL = same_BLL.tril().sum(-1) - 1
        labels_BL[positions_BL == 0] = -100

        # The token at t is predicted from the state at t-1: the shift of any causal language model
        logits_BLV = model(pad_sequence(inputs, True), same_BLL[:, None], positions_BL).logits
        loss = torch.nn.functional.cross_entropy(logits_BLV[:, :-1].flatten(0, 1), labels_BL[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    for number, value in enumerate(train(sys.argv[1], sys.argv[2], int(sys.argv[3])), start=1):
        print(f"step {number}  loss {value:.5f}")
