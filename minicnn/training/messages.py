"""Lines of text about a training in progress."""

from statistics import fmean


def standing(last_rows, epochs, nets):
    """Where training is: epochs and mean accuracies of the nets in training, and nets trained.

    last_rows: {net: its last row of the history, None if it diverged}. nets: how many there are.
    """
    rows = [row for row in last_rows.values() if row is not None]
    running = [row for row in rows if row["epoch"] < epochs]
    parts = []
    if running:
        first, last = (pick(row["epoch"] for row in running) for pick in (min, max))
        part = f"epoch {first}" if first == last else f"epochs {first} to {last}"
        accuracy = fmean(row["train_accuracy"] for row in running)
        part += f" of {epochs}: train accuracy {accuracy:.5f}"
        validation = [row["validation_accuracy"] for row in running]
        if None not in validation:
            part += f", validation accuracy {fmean(validation):.5f}"
        if len(running) > 1:
            part += f" (mean of {len(running)} nets)"
        parts.append(part)
    if trained := len(rows) - len(running):
        parts.append(f"{trained} of {nets} nets trained")
    return "; ".join(parts)


def epoch_line(row, epochs):
    """A row of the history in one line."""
    line = f"net {row['net']}, epoch {row['epoch']} of {epochs}: loss {row['train_loss']:.5f}"
    line += f", accuracy {row['train_accuracy']:.5f}"
    if row["validation_loss"] is not None:
        line += f", val_loss {row['validation_loss']:.5f}"
        line += f", val_accuracy {row['validation_accuracy']:.5f}"
    return f"{line}, {row['seconds']:.1f} s"
