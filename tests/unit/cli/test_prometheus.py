"""Test the Prometheus collector through a registry and through a scrape."""

from isolated import run

PRELUDE = """
    import gc, os, sys, tempfile
    import numpy as np, pyray_ser
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.parser import text_string_to_metric_families
    from pyray_ser import metrics

    MB = 1 << 20
    registry = CollectorRegistry()
    collector = metrics.register(registry)

    def scrape():
        found = {}
        for family in text_string_to_metric_families(generate_latest(registry).decode()):
            for sample in family.samples:
                found.setdefault(sample.name, {})[sample.labels["store"]] = (sample.value, sample.labels["path"], family.type)
        return found
"""


def test_the_figures_are_those_of_stats():
    script = """
    folder = tempfile.TemporaryDirectory(dir=os.environ.get("PYRAY_SER_TEST_DISK", "/var/tmp"))
    path = os.environ["PYRAY_SER_STORE_DIR"] + f"-prometheus-{os.getpid()}"
    store = pyray_ser.init(path, capacity=24 * MB, spill_dir=os.path.join(folder.name, "spill"))
    refs = [pyray_ser.put(np.full(MB // 2, i)) for i in range(10)]
    message = refs[0].to_message()
    stats, found, ident = pyray_ser.stats(), scrape(), f"{store.id:016x}"
    assert stats["spilled"] > 3 and stats["in_flight"] == 1
    for key, name in {
        "capacity": "capacity_bytes", "used": "used_bytes", "backed": "backed_bytes", "objects": "objects",
        "clients": "clients", "in_flight": "references_in_flight", "spilled": "spilled_objects",
        "spilled_bytes": "spilled_bytes",
    }.items():
        value, where, kind = found["pyray_ser_" + name][ident]
        assert value == stats[key] > 0 and where == path and kind == "gauge", (name, value, stats[key])
    assert found["pyray_ser_up"][ident][0] == 1
    assert found["pyray_ser_stolen_locks_total"][ident] == (0, path, "counter")
    # What changes is seen by the next scrape.
    store.count_pull(5000)
    store.count_pull(3000)
    store.count_failed_pull()
    for name, value in {"pulls": 2, "pulled_bytes": 8000, "failed_pulls": 1}.items():
        assert scrape()[f"pyray_ser_{name}_total"][ident] == (value, path, "counter")
        assert pyray_ser.stats()[name] == value
    pid = os.fork()
    if pid == 0:
        pyray_ser.put(5)
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    store.look()
    assert scrape()["pyray_ser_reaped_clients_total"][ident][0] == 1
    before = scrape()["pyray_ser_objects"][ident][0]
    del refs[1:]
    gc.collect()
    assert before == 10 and scrape()["pyray_ser_objects"][ident][0] == 1
    print(registry.get_sample_value("pyray_ser_capacity_bytes", {"store": ident, "path": path}) == stats["capacity"])
    """
    assert run(PRELUDE + script) == "True"


def test_a_scrape_opens_no_store_and_outlives_one():
    script = """
    assert scrape() == {} and not pyray_ser.is_initialized()
    text = generate_latest(registry).decode()
    assert "# TYPE pyray_ser_capacity_bytes gauge" in text and "# TYPE pyray_ser_reaped_clients_total counter" in text
    first = pyray_ser.init(capacity=16 * MB)
    assert len(scrape()["pyray_ser_up"]) == 1
    pyray_ser.shutdown()
    assert scrape() == {} and not pyray_ser.is_initialized()
    pyray_ser.init(capacity=16 * MB)
    assert list(scrape()["pyray_ser_up"]) != [f"{first.id:016x}"]
    print(len(scrape()["pyray_ser_used_bytes"]))
    """
    assert run(PRELUDE + script) == "1"


def test_a_path_that_is_not_text():
    script = """
    path = (os.environ["PYRAY_SER_STORE_DIR"] + f"-prometheus-{os.getpid()}-").encode() + b"\\xff"
    store = pyray_ser.init(os.fsdecode(path), capacity=16 * MB)
    print(scrape()["pyray_ser_up"][f"{store.id:016x}"][1] == path.decode("utf-8", "backslashreplace"))
    """
    assert run(PRELUDE + script) == "True"


def test_two_collectors_need_two_prefixes():
    script = """
    try:
        metrics.register(registry)
    except ValueError as error:
        print("Duplicated" in str(error))
    other = metrics.register(registry, prefix="mine")
    pyray_ser.put(1)
    assert "mine_capacity_bytes" in scrape() and "pyray_ser_capacity_bytes" in scrape()
    registry.unregister(other)
    assert "mine_capacity_bytes" not in scrape()
    from prometheus_client import REGISTRY
    default = metrics.register()
    print(b"pyray_ser_objects{" in generate_latest(REGISTRY))
    """
    assert run(PRELUDE + script) == "True\nTrue"


def test_a_store_that_cannot_be_read_is_down():
    # The extension class cannot be patched, so a fake class raises the error that a stopped process causes.
    script = """
    from pyray_ser import _core
    from pyray_ser.exceptions import StoreBusyError, StoreClosedError

    class Stopped:
        id, path = 255, None
        def stats(self):
            raise StoreBusyError(pid=1)

    class Closed(Stopped):
        id = 254
        def stats(self):
            raise StoreClosedError(store="254")

    store = pyray_ser.init(capacity=16 * MB)
    stores = _core.open_stores
    metrics._core = type("", (), {"open_stores": staticmethod(lambda: [Closed(), Stopped(), *stores()])})
    found = scrape()
    assert {key: value[0] for key, value in found["pyray_ser_up"].items()} == {f"{255:016x}": 0, f"{store.id:016x}": 1}
    print(len(found["pyray_ser_objects"]))
    """
    assert run(PRELUDE + script, errors=True) == "1"


def test_nobody_imports_it_unasked():
    script = """
    import sys, pyray_ser
    pyray_ser.put(1)
    print("prometheus_client" in sys.modules, "pyray_ser.metrics" in sys.modules)
    """
    assert run(script) == "False False"
