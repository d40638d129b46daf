"""Data sets too large for memory: images decoded when they are needed, by worker processes if there are any."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benchmarks.cv.class_folders import ClassFolders, read_image
from benchmarks.cv.images import Images, Request
from horovod_dpsgd.errors import DataError
from horovod_dpsgd.processes import sparing_children

Batch = tuple[Tensor, Tensor]


def evaluation_view(size: int) -> v2.Transform:
    """Resize the shorter side to 256/224 of `size` and cut out the centre, as is usual for ImageNet at size 224."""
    return v2.Compose([v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size), v2.PILToTensor()])


def training_view(size: int) -> v2.Transform:
    """A random part of 8 to 100 % of the area, resized to `size`, and every second one mirrored."""
    return v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), v2.PILToTensor()])


class Decoder(Dataset):
    """Decodes the batch that a request names: `decoder[request]`, in whatever process."""

    def __init__(self, folders: ClassFolders, size: int) -> None:
        self.folders = folders
        self.for_evaluation, self.for_training = evaluation_view(size), training_view(size)

    def __getitem__(self, request: Request) -> Batch | DataError:
        """The batch, or why there is none: a worker that raised it would bury the reason in two tracebacks."""
        try:
            images = [read_image(self.folders.path(sample)) for sample in request.samples]
        except DataError as error:
            return error
        labels = torch.from_numpy(self.folders.labels[request.samples])
        if request.seed is None:
            return torch.stack([self.for_evaluation(image) for image in images]), labels
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global stream, which is the learner's
            torch.manual_seed(request.seed)
            return torch.stack([self.for_training(image) for image in images]), labels


class OnDiskImages(Images):
    """Images of `size` x `size` pixels from class folders, prepared ahead by `workers` processes.

    0 workers: decoded in the learner itself, when they are needed. pin: into memory that a GPU can copy from meanwhile.
    """

    def __init__(self, folders: ClassFolders, size: int, workers: int, pin: bool = False) -> None:
        self.labels = folders.labels
        self.decoder, self.workers, self.pin = Decoder(folders, size), workers, pin
        # kept, as their workers then stay from one evaluation to the next
        self._idle: list[tuple[DataLoader, _Requests]] = []

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """As `Images.batches`. Raises DataError for an image that cannot be decoded, with its path, and RuntimeError
        when a worker died."""
        if not self.workers:
            yield from map(_checked, map(self.decoder.__getitem__, requests))
            return
        loader, sampler = self._idle.pop() if self._idle else self._make_loader()
        sampler.given = requests
        try:
            with sparing_children():
                batches = iter(loader)
            yield from map(_checked, batches)
        except (OSError, EOFError) as error:  # the loader's own RuntimeError comes when no batch of that worker is due
            raise RuntimeError(f"a DataLoader worker exited unexpectedly while it sent a batch ({error})") from error
        self._idle.append((loader, sampler))

    def _make_loader(self) -> tuple[DataLoader, _Requests]:
        # Not by fork, which would copy a process whose MPI and whose threads are at work; and not by spawn, which would
        # load PyTorch once for every worker: a server, itself started afresh, loads it once and forks them.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch.utils.data", "torchvision.transforms.v2"])
        sampler = _Requests()
        loader: DataLoader = DataLoader(
            self.decoder,
            batch_size=None,  # a request is a whole batch
            sampler=sampler,
            collate_fn=_as_it_is,
            num_workers=self.workers,
            multiprocessing_context=context,
            persistent_workers=True,
            pin_memory=self.pin,
            generator=torch.Generator(),  # or it would draw from the learner's stream at every start
        )
        return loader, sampler


class _Requests:
    """What the loader is asked for next: its sampler cannot be replaced, but this can be filled."""

    given: Iterable[Request] = ()

    def __iter__(self) -> Iterator[Request]:
        return iter(self.given)


def _as_it_is(batch: object) -> object:
    return batch


def _checked(batch: Batch | DataError) -> Batch:
    if isinstance(batch, DataError):
        raise DataError(*batch.args)  # a new one: `batch` would refer by its traceback to this frame, and so to itself
    return batch
