"""Run the second process of the tests with random graphs: get each object that it receives, and put it again."""

import os
import pickle
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import graphs_ways

import pyray_ser


def error_to_send(error):
    """Return an error of the same type, so that the parent can compare it with the standard library's error."""
    text = f"in the other process: {type(error).__name__}: {error}"
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(text)
    copy.add_note(text)
    return copy


def main():
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    last = None
    while True:
        try:
            refs = graphs_ways.receive(requests)
        except EOFError:
            break
        try:
            answer = [pyray_ser.put(pyray_ser.get(ref)) for ref in refs]
        except Exception as error:
            answer = error_to_send(error)
        del refs
        graphs_ways.send(answers, answer)
        last = answer  # the parent loads the answer before its next request, so keep it until then
    del last
    pyray_ser.shutdown()


if __name__ == "__main__":
    main()
