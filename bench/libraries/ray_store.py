"""Adapter for Ray, with a local cluster of one node that only the driver uses."""

from __future__ import annotations

PACKAGES = ["ray", "numpy"]
DISTRIBUTIONS = ["ray"]
SKIPS: dict[str, str] = {}


class Library:
    def start(self) -> None:
        import logging

        import ray

        self._ray = ray
        ray.init(
            num_cpus=1,
            object_store_memory=2 * 10**9,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
        )
        self.put, self.get = ray.put, ray.get

    def free(self, ref: object) -> None:
        """Do nothing: the caller has the last reference and drops it, which frees the object."""

    def stop(self) -> None:
        self._ray.shutdown()
