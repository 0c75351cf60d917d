"""Train a small convolutional network on handwritten digits and export it for serving.

The data are scikit-learn's 1,797 scanned digits of 8 by 8 pixels. A quarter of them, drawn per
class with a fixed seed, is held out: it never reaches the training loop, and the architecture and
the number of epochs were chosen by cross-validation within the other three quarters.

    python -m examples.digits.train REPOSITORY

writes `REPOSITORY/digits/1/model.pt2`. Names, types and the dynamic batch dimension travel
inside the exported program, so the server needs nothing else.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from sklearn.metrics import precision_recall_fscore_support  # type: ignore[import-untyped]
from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 10
MAX_BATCH = 64
SEED = 0
EPOCHS = 30
ROWS_PER_STEP = 64
PEAK_LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1e-2

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


class DigitNet(nn.Module):
    """Two convolutions and a hidden layer; 38,000 parameters.

    Takes `image` FP32 [batch, 8, 8] with ink from 0 to 1, gives the logits [batch, 10].
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Unflatten(1, (1, 8)),
            nn.Conv2d(1, 16, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(32 * 4 * 4, 64),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(64, CLASSES),
        )

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.layers(image)
        return logits


class DigitClassifier(nn.Module):
    """What is served: the trained network, its answer named and normalised."""

    def __init__(self, network: DigitNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"probabilities": self.network(image).softmax(dim=-1)}


def split() -> tuple[Images, Images, Labels, Labels]:
    """Return train images, test images, train labels, test labels; the same split every time."""
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)
    labels = digits.target.astype(np.int64)
    parts: tuple[Images, Images, Labels, Labels] = tuple(
        train_test_split(images, labels, test_size=0.25, stratify=labels, random_state=SEED)
    )
    return parts


def test_set() -> tuple[Images, Labels]:
    """Return the held-out images FP32 [450, 8, 8] with ink from 0 to 1, and their digits [450]."""
    _, images, _, labels = split()
    return images, labels


def train(console: Console) -> DigitNet:
    """Train on three quarters of the data; some seconds on one thread, no randomness left open."""
    train_images, _, train_labels, _ = split()
    images, labels = torch.from_numpy(train_images), torch.from_numpy(train_labels)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of floating-point sums depends on the thread count
    try:
        with (
            torch.random.fork_rng(),
            Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
        ):
            torch.manual_seed(SEED)
            network = DigitNet()
            steps = EPOCHS * -(-len(images) // ROWS_PER_STEP)
            optimizer = torch.optim.AdamW(
                network.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY
            )
            schedule = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, max_lr=PEAK_LEARNING_RATE, total_steps=steps
            )
            task = progress.add_task("training on digits", total=steps)
            for _ in range(EPOCHS):
                for rows in torch.split(torch.randperm(len(images)), ROWS_PER_STEP):
                    loss = functional.cross_entropy(network(images[rows]), labels[rows])
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    schedule.step()
                    progress.advance(task)
    finally:
        torch.set_num_threads(threads)
    return network.eval()


def report(network: DigitNet, console: Console) -> None:
    """Print accuracy, and precision and recall of each digit, on the held-out images."""
    images, labels = test_set()
    with torch.inference_mode():
        predicted = network(torch.from_numpy(images)).argmax(dim=-1).numpy()
    correct = int((predicted == labels).sum())
    precision, recall, _, support = precision_recall_fscore_support(labels, predicted)
    console.print(
        f"digits: {correct} of {len(labels)} held-out images right, {correct / len(labels):.2%}"
    )
    table = Table()
    for heading in ("digit", "precision", "recall", "images"):
        table.add_column(heading, justify="right")
    for digit in range(CLASSES):
        table.add_row(
            str(digit), f"{precision[digit]:.3f}", f"{recall[digit]:.3f}", str(support[digit])
        )
    console.print(table)


def export(network: DigitNet, path: Path) -> None:
    """Write the exported program to `path`: the whole file appears at once or not at all."""
    program = torch.export.export(
        DigitClassifier(network).eval(),
        # Two rows, because export would take a single one for a constant.
        (torch.zeros(2, 8, 8),),
        dynamic_shapes={"image": {0: torch.export.Dim("batch", min=1, max=MAX_BATCH)}},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    torch.export.save(program, unfinished)
    os.replace(unfinished, path)


def build(directory: Path, console: Console) -> None:
    """Train, report and write `directory/model.pt2`."""
    network = train(console)
    report(network, console)
    export(network, directory / "model.pt2")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and export the digits example.")
    parser.add_argument("repository", type=Path, help="the model repository to write into")
    build(parser.parse_args().repository / "digits" / "1", Console())


if __name__ == "__main__":
    main()
