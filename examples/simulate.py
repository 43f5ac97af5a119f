"""Simulate a network in virtual time: the real services on links that fail, checked at every step.

By default fifty nodes, of which twelve race; a third of the way the network falls into two halves, each of which goes
on with the story; then it heals, and everybody ends with one head and every block of both histories. The same arguments
give the same run, to the last bit: the digest at the end says so.

With `--hostile 6` six more nodes join, each of which lies in another way.

Run it: python examples/simulate.py [--plan partition|storm|chaos] [--nodes 50] [--seed 0] [--minutes 1] [--hostile 0]
"""

import argparse
import logging
import time

from loremesh.testing.hostile import MALICES
from loremesh.testing.scenarios import PLANS, Scenario
from loremesh.testing.simulator import simulate


def main() -> None:
    """Run one scenario and say what happened."""
    parser = argparse.ArgumentParser(description="Simulate a network in virtual time.")
    parser.add_argument("--plan", choices=PLANS, default="partition")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--miners", type=int, default=12)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--hostile", type=int, default=0, help="nodes more that lie, each in another way")
    scenario = Scenario(**vars(parser.parse_args()))
    logging.disable(logging.WARNING)  # broken links are the point here, not news
    print(f"{scenario.nodes} nodes, {scenario.miners} of them race, {scenario.minutes:g} minutes, seed {scenario.seed}")
    for number in range(scenario.hostile):
        print(f"  beside them a node that {MALICES[number % len(MALICES)].name}")
    for step in scenario.steps():
        print(f"{step.at:6.1f} s  {type(step.action).__name__.lower()}")
    began = time.perf_counter()
    report = simulate(scenario)
    took = time.perf_counter() - began
    print(f"all agree on one head at height {report.height}, {report.agreed_after:.1f} s after the last block")
    print(f"every node has all {report.blocks} blocks of {report.branches} branches")
    print(f"deepest reorg {report.deepest_reorg}, nodes killed and back {report.kills}")
    if scenario.hostile:
        print(f"{report.bans} times an honest node shut a hostile one out; never an honest one")
    print(f"{report.seconds:.0f} s of the network's time took {took:.1f} s; nothing that must hold ever did not")
    print(f"digest {report.digest[:16]} of {report.told} happenings: the same in every run")


if __name__ == "__main__":
    main()
