"""What processes that share the training of an adapter do, for ``run_processes``."""

import os

from lightning.pytorch import seed_everything
from lightning.pytorch.strategies import DDPStrategy
from peft import LoraConfig
from runs import RowsData, every_batch, module, train

from refine_pl.backbones import load_pretrained


def train_adapter(base, folder):
    """Train in float64 for two iterations; the adapter, how far it moved, and the KL."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    seed_everything(0, verbose=False)
    policy = load_pretrained(base).double()
    model = module(policy, adapter=LoraConfig(r=2), kl_weight=0.1)
    before = {n: p.detach().clone() for n, p in policy.named_parameters() if p.requires_grad}
    curve = train(
        model,
        RowsData(batch_size=4),
        iterations=2,
        callbacks=[every_batch(folder)],
        enable_checkpointing=True,
        devices=processes,
        strategy="auto" if processes == 1 else DDPStrategy(),
    )
    trained = {n: p.detach() for n, p in policy.named_parameters() if p.requires_grad}
    moved = max(float((trained[n] - before[n]).abs().max()) for n in before)
    return {"trained": trained, "moved": moved, "kl": curve["train/kl"][-1]}
