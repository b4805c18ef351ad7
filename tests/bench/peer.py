"""One peer's trainer, in its own environment: `peer.py NAME SETTING`, told by tests/bench/peers.py over stdin what to do.

Each step is the peer's own: its loss, gradients, optimizer, schedule, and what it does to its decoder. Nothing of ours is
imported. Rows are scaled by one factor as each peer scales them; `save` folds that into the weights, in raw units.
"""

import json
import sys
import time

import torch
from safetensors.torch import load_file, save_file


class SAELens:
    """Matryoshka BatchTopK by SAETrainer.step. b_dec starts at the mean, not at 0, which is kinder to a short run."""

    def __init__(self, c: dict, source: torch.Tensor, target: torch.Tensor) -> None:
        from sae_lens.config import LoggingConfig, SAETrainerConfig
        from sae_lens.saes.matryoshka_batchtopk_sae import (
            MatryoshkaBatchTopKTrainingSAE,
            MatryoshkaBatchTopKTrainingSAEConfig,
        )
        from sae_lens.training.sae_trainer import SAETrainer

        d = source.shape[1]
        self.factor = float(d**0.5 / source[:2048].norm(dim=1).mean())
        config = MatryoshkaBatchTopKTrainingSAEConfig(
            d_in=d,
            d_sae=c["d_sae"],
            k=c["k"],
            matryoshka_widths=c["prefixes"],
            dtype="float32",
            device="cpu",
            normalize_activations="expected_average_only_in",
        )
        self.sae = MatryoshkaBatchTopKTrainingSAE(config)
        self.sae.b_dec.data = source[:2048].mean(0) * self.factor
        trainer = SAETrainerConfig(
            total_training_samples=c["steps"] * c["batch"],
            train_batch_size_samples=c["batch"],
            device="cpu",
            lr=c["lr"],
            lr_end=c["lr"] / 10,
            lr_warm_up_steps=c["warm"],
            lr_decay_steps=c["steps"] // 5,
            n_checkpoints=0,
            checkpoint_path=None,
            save_final_checkpoint=False,
            logger=LoggingConfig(log_to_wandb=False),
        )
        self.trainer = SAETrainer(trainer, self.sae, data_provider=iter(()))
        self.trainer.activation_scaler.scaling_factor = self.factor

    def step(self, source: torch.Tensor, target: torch.Tensor) -> None:
        self.trainer.step(source)
        self.trainer.n_training_steps += 1

    def weights(self) -> dict[str, torch.Tensor]:
        sae = self.sae
        norm = sae.W_dec.norm(dim=1)
        W_enc, b_enc = sae.W_enc * norm, (sae.b_enc - sae.b_dec @ sae.W_enc) * norm
        return {
            "W_enc": W_enc * self.factor,
            "b_enc": b_enc,
            "W_dec": sae.W_dec / norm[:, None] / self.factor,
            "b_dec": sae.b_dec / self.factor,
        }


class DictionaryLearning:
    """MatryoshkaBatchTopKTrainer.update, on rows scaled to a mean squared norm of 1 as its trainSAE does."""

    def __init__(self, c: dict, source: torch.Tensor, target: torch.Tensor) -> None:
        from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer

        self.factor = float(source[:2048].square().sum(1).mean().rsqrt())
        groups = torch.tensor([0, *c["prefixes"]]).diff() / c["d_sae"]
        self.trainer = MatryoshkaBatchTopKTrainer(
            steps=c["steps"],
            activation_dim=source.shape[1],
            dict_size=c["d_sae"],
            k=c["k"],
            layer=0,
            lm_name="",
            group_fractions=groups.tolist(),
            lr=c["lr"],
            warmup_steps=c["warm"],
            decay_start=c["steps"] * 4 // 5,
            threshold_start_step=0,
            seed=c["seed"],
            device="cpu",
        )
        self.number = 0

    def step(self, source: torch.Tensor, target: torch.Tensor) -> None:
        self.trainer.update(self.number, source * self.factor)
        self.number += 1

    def weights(self) -> dict[str, torch.Tensor]:
        ae = self.trainer.ae
        return {
            "W_enc": ae.W_enc * self.factor,
            "b_enc": ae.b_enc - ae.b_dec @ ae.W_enc,
            "W_dec": ae.W_dec / self.factor,
            "b_dec": ae.b_dec / self.factor,
        }


class Sparsify:
    """TopK transcoder: the body of Trainer.fit's loop, with its optimizer (signed gradients, no schedule)."""

    def __init__(self, c: dict, source: torch.Tensor, target: torch.Tensor) -> None:
        from schedulefree import ScheduleFreeWrapper
        from sparsify.config import SparseCoderConfig
        from sparsify.sign_sgd import SignSGD
        from sparsify.sparse_coder import SparseCoder

        config = SparseCoderConfig(num_latents=c["d_sae"], k=c["k"], transcode=True)
        self.coder = coder = SparseCoder(source.shape[1], config, "cpu", torch.float32)
        coder.encoder.bias.data = -source[: c["batch"]].mean(0) @ coder.encoder.weight.data.T
        coder.b_dec.data = target[: c["batch"]].mean(0)
        self.optimizer = ScheduleFreeWrapper(SignSGD(coder.parameters(), lr=c["lr"]), momentum=0.95)
        self.optimizer.train()

    def step(self, source: torch.Tensor, target: torch.Tensor) -> None:
        self.coder(source, target).fvu.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def weights(self) -> dict[str, torch.Tensor]:
        self.optimizer.eval()
        coder = self.coder
        return {"W_enc": coder.encoder.weight.T, "b_enc": coder.encoder.bias, "W_dec": coder.W_dec, "b_dec": coder.b_dec}


PEERS = {"saelens": SAELens, "dictionary_learning": DictionaryLearning, "sparsify": Sparsify}


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # peers print, and stdout is for answers
    name, c = sys.argv[1], json.loads(sys.argv[2])
    rows = load_file(c["rows"])
    source, target = rows["source"], rows["target"]
    torch.manual_seed(c["seed"])
    made, n_batches, number = PEERS[name](c, source, target), len(source) // c["batch"], 0

    def step() -> float:
        nonlocal number
        at = slice(number % n_batches * c["batch"], (number % n_batches + 1) * c["batch"])
        number += 1
        start = time.perf_counter()
        made.step(source[at], target[at])
        return time.perf_counter() - start

    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "step":
            answer = step()
        else:
            save_file({key: tensor.detach().contiguous() for key, tensor in made.weights().items()}, request["path"])
            answer = 0.0
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
