"""The history of a training in Keras's names."""

import pandas as pd

# {name here: name in the rows of a Trainer, and in history.csv}
_NAMES = {
    "net": "net",
    "epoch": "epoch",
    "learning_rate": "learning_rate",
    "loss": "train_loss",
    "accuracy": "train_accuracy",
    "val_loss": "validation_loss",
    "val_accuracy": "validation_accuracy",
    "seconds": "seconds",
}
_METRICS = "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"


def named(row):
    """A row of a Trainer's history in Keras's names; without validation it has no "val_..."."""
    return {
        name: row[column]
        for name, column in _NAMES.items()
        if row[column] is not None or not name.startswith("val_")
    }


class History:
    """What Sequential.fit returns: a row for each net and epoch.

    trained: rows as a Trainer has them. loss and accuracy are those of the epoch's batches,
    augmented, with dropout and label smoothing.
    """

    def __init__(self, trained):
        self.trained = list(trained)

    @property
    def rows(self):
        """Dicts: net and epoch (both from 1), learning_rate, loss, accuracy, seconds.

        With validation images also val_loss and val_accuracy.
        """
        return [named(row) for row in self.trained]

    @property
    def epoch(self):
        """The epochs, from 1, in order."""
        return sorted({row["epoch"] for row in self.trained})

    @property
    def history(self):
        """{metric: a list with an entry per epoch}, as Keras's: the mean over the nets."""
        table = self.to_frame()
        means = table.groupby("epoch")[[name for name in _METRICS if name in table]].mean()
        return {name: means[name].tolist() for name in means}

    def to_frame(self):
        """The rows as a DataFrame, sorted by net and epoch."""
        table = pd.DataFrame(self.rows, columns=None if self.trained else list(_NAMES))
        return table.sort_values(["net", "epoch"], ignore_index=True)

    def __repr__(self):
        nets = len({row["net"] for row in self.trained})
        text = f"<History of {nets} net(s), {len(self.epoch)} epoch(s)"
        if self.trained:
            last = {name: values[-1] for name, values in self.history.items()}
            text += f": {', '.join(f'{name} {value:.4g}' for name, value in last.items())}"
        return text + ">"

    def _repr_html_(self):
        """For notebooks: the last epoch of each net."""
        table = self.to_frame().groupby("net").tail(1)
        return table.to_html(index=False, float_format="{:.5g}".format, border=0)
