"""A study's work: which nets are missing, what they will cost, and having them trained."""

from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import replace
from datetime import timedelta

from ..training.resources import split_nets
from ..training.workers import Interrupted
from .tasks import Task, measure, train_nets


class Work:
    """The nets of a study's cells that are not trained yet.

    trained: {(cell, net)} of those that are; about: the fields of a Task that all have in common.
    """

    def __init__(self, cells, trained, **about):
        self.cells = cells
        self._tasks = [
            Task(cell.name, cell.recipe, range(1, cell.recipe.nets * cell.trials + 1), **about)
            for cell in cells
        ]  # all nets of a cell
        self._missing = [
            [net for net in task.nets if (task.cell, net) not in trained] for task in self._tasks
        ]
        self.nets = sum(map(len, self._missing))
        self.trained_nets = sum(len(task.nets) for task in self._tasks) - self.nets
        self.total_images = sum(task.images for task in self._tasks)
        self.images = sum(
            len(missing) * _images_of_a_net(task)
            for task, missing in zip(self._tasks, self._missing, strict=True)
        )

    def measure(self, place, test_images, should_stop):
        """(seconds that all will take at a Place, {network: nets that a process trains together}).

        Nets of each network are trained for a moment, by as many processes at once as there are.
        Raises what a task raises, Interrupted where should_stop() turns true.
        """
        rates, groups = {}, {}
        # That with the most nets tells how many can be trained together.
        for task in sorted(self._tasks, key=lambda task: len(task.nets), reverse=True):
            if _network(task) not in rates:
                found = _all(place, measure, [task] * place.count, should_stop)
                rates[_network(task)] = sum(measured.images_per_second for measured in found)
                groups[_network(task)] = min(measured.group for measured in found)
        seconds = sum(
            # To predict an image is about a third of the work of training on it.
            len(missing) * (_images_of_a_net(task) + test_images / 3) / rates[_network(task)]
            for task, missing in zip(self._tasks, self._missing, strict=True)
        )
        return seconds, groups

    def do(self, place, groups, most, keep, report, should_stop):
        """Have all trained at a Place, in tasks of as many nets as `groups`, which measure found,
        has of their network, and of `most` at most, if that is not None.

        keep(cell, nets) is called for the TrainedNets of each task as it ends, and report(n) from
        time to time, after n images so far. Raises what a task raises, Interrupted where
        should_stop() turns true.
        """
        fair = -(-self.nets // place.count)  # with more, some process would have none
        parts = [
            (cell, replace(task, nets=nets))
            for cell, task, missing in zip(self.cells, self._tasks, self._missing, strict=True)
            for nets in split_nets(missing, min(groups[_network(task)], fair, most or fair))
        ]
        # The first trials come first, so that a study that is stopped has something to tell.
        parts.sort(key=lambda part: (part[1].nets[0] - 1) // part[1].recipe.nets)
        finished = 0
        for ended in _rounds(place, train_nets, [task for _, task in parts], should_stop):
            for number, nets in ended:
                cell, task = parts[number]
                keep(cell, nets)
                finished += task.images
            report(finished + place.in_hand())


def in_words(seconds, place):
    """What a Work's measure has found."""
    seconds = round(min(seconds, 1e13))  # a timedelta ends at some time
    about = timedelta(seconds=seconds if seconds < 3600 else seconds // 60 * 60)
    return f"about {about}, in {place.count} process{'es' * (place.count > 1)}"


def _images_of_a_net(task):
    return task.images // len(task.nets)


def _network(task):
    """A text that is the same for tasks whose networks are."""
    return str([(type(layer).__name__, vars(layer)) for layer in task.recipe.layers])


def _all(place, function, tasks, should_stop):
    """[function(task) for task in tasks], done at a Place."""
    found = {}
    for ended in _rounds(place, function, tasks, should_stop):
        found.update(ended)
    return [found[number] for number in range(len(tasks))]


def _rounds(place, function, tasks, should_stop):
    """Have function(task) of each task done at a Place: yields, several times a second, the list of
    (number, result) of those that have ended since.
    """
    numbers = {place.executor.submit(function, task): n for n, task in enumerate(tasks)}
    waiting = set(numbers)
    try:
        while waiting:
            done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            ended, fault = [], None
            for future in done:
                try:
                    ended.append((numbers.pop(future), future.result()))
                except Exception as error:  # the others' results come first
                    fault = error
            yield ended
            place.look()
            if fault is not None:
                raise fault
            if should_stop():
                raise Interrupted
    finally:
        for future in waiting:
            future.cancel()
