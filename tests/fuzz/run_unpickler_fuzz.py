"""Change pickles for as long as told and compare what comes out: ``python run_unpickler_fuzz.py SECONDS [SEED]``.

Run it on the sanitizer build to look for reads and writes out of bounds: ``make asan`` says how that is preloaded. With
``--ours`` only our unpickler runs, which is faster, and the only thing compared is that its ways to read agree.
Prints the input of every difference and ends with status 1 if there was one.
"""

import os
import random
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import unpickler_compare as compare
import unpickler_seeds as seeds
from unpickler_mutate import mutate


def main():
    arguments = [a for a in sys.argv[1:] if not a.startswith("--")]
    seconds = float(arguments[0]) if arguments else 10
    seed = int(arguments[1]) if len(arguments) > 1 else random.SystemRandom().randrange(2**32)
    rng = random.Random(seed)
    pool = seeds.seeds()
    originals = len(pool)
    stop, rounds, values, failures = time.monotonic() + seconds, 0, 0, 0
    print(f"seed {seed}", flush=True)
    while time.monotonic() < stop:
        data = mutate(rng.choice(pool), rng, pool[:originals])
        rounds += 1
        if "--trace" in sys.argv:
            # The last line names the input that crashed.
            print(data.hex(), file=sys.stderr, flush=True)
        if "--ours" in sys.argv:
            results = compare.ours(data)
            difference = None if all(r[:2] == results[1][:2] or "in safe mode" in r[-1] for r in results) else results
            if results[0][0] == "value":
                values += 1
        else:
            difference = compare.difference(data)
        if difference:
            failures += 1
            print("DIFFERENT", data, difference, flush=True)
        elif rng.random() < 0.02:
            # Changes of changes reach further; the pool stays bounded.
            if len(pool) < 4 * originals:
                pool.append(data)
            else:
                pool[rng.randrange(originals, len(pool))] = data
    print(f"{rounds} rounds, {values} values, {failures} differences")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
