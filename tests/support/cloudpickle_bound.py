"""Replace the functions of cloudpickle and pickle by those of this package, for cloudpickle's own test suite.

This is a plugin for the pytest process that runs the suite. It writes the outcome of each test to the file named by
CLOUDPICKLE_OUTCOMES. The suite puts a folder on the path of its child processes. That folder contains a copy of
this file, named ``sitecustomize.py``, which replaces the functions in these processes.
"""

import json
import os
import pickle

import cloudpickle

import pyray_ser

for module in (cloudpickle, cloudpickle.cloudpickle):
    for name in ("dump", "dumps", "load", "loads"):
        setattr(module, name, getattr(pyray_ser, name))
pickle.load, pickle.loads = pyray_ser.load, pyray_ser.loads

outcomes = {}


def pytest_runtest_logreport(report):
    name = report.nodeid.split("/")[-1]
    # A failure overrides the outcome of the other phases of a test; only the set-up reports a skip.
    if report.failed:
        outcomes[name] = ("failed", str(report.longrepr))
    elif report.skipped:
        outcomes[name] = ("skipped", str(report.longrepr))
    elif report.when == "call":
        outcomes[name] = ("passed", "")


def pytest_sessionfinish(session):
    with open(os.environ["CLOUDPICKLE_OUTCOMES"], "w") as file:
        json.dump(outcomes, file)
