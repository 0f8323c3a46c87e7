"""The work of a study: find the nets that are not trained yet, estimate the time, train them."""

from dataclasses import replace
from datetime import timedelta

from ..training.cluster import run_each
from ..training.resources import split_nets
from .tasks import Task, measure, train_nets


class Work:
    """The nets of a study's cells that are not trained yet.

    Cells that differ in their recipes' views only have the same nets: these are trained once.
    trained: the set of (cell, net) of the trained nets. about: fields of Task that all tasks share.
    """

    def __init__(self, cells, trained, **about):
        same = {}
        for cell in cells:
            same.setdefault((replace(cell.recipe, views=1), cell.trials), []).append(cell)
        self._cells = list(same.values())
        self._tasks = [_task(of_task, about) for of_task in self._cells]  # each with all its nets
        self._missing = [
            [net for net in task.nets if any((cell.name, net) not in trained for cell in of_task)]
            for of_task, task in zip(self._cells, self._tasks, strict=True)
        ]
        self.nets = sum(map(len, self._missing))
        self.trained_nets = sum(len(task.nets) for task in self._tasks) - self.nets
        self.total_images = sum(task.images for task in self._tasks)
        self.images = sum(
            len(missing) * _images_of_a_net(task)
            for task, missing in zip(self._tasks, self._missing, strict=True)
        )

    def measure(self, place, test_images, should_stop):
        """Estimate the time at a Place: (seconds, {network: nets that a process trains together}).

        All processes train nets of each network for a moment, at the same time. Raises what a task
        raises, and Interrupted when should_stop() returns True.
        """
        rates, groups = {}, {}
        # Of tasks with the same network, the one with the most nets shows how many fit together.
        for task in sorted(self._tasks, key=lambda task: len(task.nets), reverse=True):
            if _network(task) not in rates:
                found = _run_all(place, measure, [task] * place.count, should_stop)
                rates[_network(task)] = sum(measured.images_per_second for measured in found)
                groups[_network(task)] = min(measured.group for measured in found)
        seconds = sum(
            # Predicting an image takes about a third of the time of training on it.
            len(missing)
            * (_images_of_a_net(task) + sum((task.recipe.views, *task.views)) * test_images / 3)
            / rates[_network(task)]
            for task, missing in zip(self._tasks, self._missing, strict=True)
        )
        return seconds, groups

    def do(self, place, groups, most, keep, report, should_stop):
        """Train the missing nets at a Place.

        A task has at most groups[network] nets, as found by measure(), and at most `most` unless
        that is None. keep([(cell, its TrainedNets), ...]) is called when a task ends. report(n) is
        called regularly; n is the number of images so far. Raises what a task raises, and
        Interrupted when should_stop() returns True.
        """
        fair = -(-self.nets // place.count)  # with larger tasks, a process could have none
        parts = [
            (of_task, replace(task, nets=nets))
            for of_task, task, missing in zip(self._cells, self._tasks, self._missing, strict=True)
            for nets in split_nets(missing, min(groups[_network(task)], fair, most or fair))
        ]
        # Sorted by trial, so that a study that is stopped has complete trials to evaluate.
        parts.sort(key=lambda part: (part[1].nets[0] - 1) // part[1].recipe.nets)
        finished = 0
        for ended in run_each(place, train_nets, [task for _, task in parts], should_stop):
            for number, nets in ended:
                of_task, task = parts[number]
                keep([(cell, [_with(net, cell.recipe.views) for net in nets]) for cell in of_task])
                finished += task.images
            report(finished + place.in_hand())


def _task(cells, about):
    """The Task that trains all nets of cells that differ in their recipes' views only."""
    recipe, trials = cells[0].recipe, cells[0].trials
    views = {cell.recipe.views for cell in cells} - {recipe.views}
    nets = range(1, recipe.nets * trials + 1)
    return Task(cells[0].name, recipe, nets, views=tuple(sorted(views)), **about)


def _with(net, views):
    """A TrainedNet with its probabilities for a number of views."""
    return replace(net, probabilities=net.by_views.get(views, net.probabilities), by_views={})


def in_words(seconds, place):
    """The estimated time of Work.measure, as text."""
    seconds = round(min(seconds, 1e13))  # the range of timedelta is limited
    about = timedelta(seconds=seconds if seconds < 3600 else seconds // 60 * 60)
    return f"about {about}, in {place.count} process{'es' * (place.count > 1)}"


def _images_of_a_net(task):
    return task.images // len(task.nets)


def _network(task):
    """A text that identifies the network of a task."""
    return str([(type(layer).__name__, vars(layer)) for layer in task.recipe.layers])


def _run_all(place, function, tasks, should_stop):
    """[function(task) for task in tasks], run at a Place."""
    found = {}
    for ended in run_each(place, function, tasks, should_stop):
        found.update(ended)
    return [found[number] for number in range(len(tasks))]
