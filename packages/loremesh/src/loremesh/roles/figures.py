"""A node's figures: each read where it is kept, at the moment it is asked for. docs/metrics.md explains them."""

import threading
from collections.abc import Iterator

import trio

import loremesh
from loremesh.errors import ErrorKind
from loremesh.network.events import CallServed, GossipReceived, GossipRefused
from loremesh.primitives import Millis
from loremesh.protocol.identity import peer_id_text
from loremesh.roles.assembly import Services, Story
from loremesh.services.liveness import Liveness
from loremesh.services.llm_server import LlmServer
from loremesh.services.tally import Tally
from loremesh.web.report import Figure, Kind


def figures_of(services: Services, tally: Tally, accepted: int, now: Millis) -> tuple[Figure, ...]:
    """Read all figures of a node.

    Args:
        services: Of the node.
        tally: What it told of so far.
        accepted: Blocks that joined the tree since the start.
        now: The local clock.
    """
    figures = [*_node(services), *_network(services), *_rules(tally)]
    for server in services.servers:
        figures += _calls(server, tally)
    if services.story is not None:
        figures += [*_chain(services.story, tally, accepted, now), *_sync(services.story)]
    return tuple(figures)


def _node(services: Services) -> Iterator[Figure]:
    story = services.story.chain.store.story.hex() if services.story else ""
    yield Figure(
        "loremesh_node_info",
        Kind.GAUGE,
        "Always 1; the labels say which node this is.",
        ("version", "role", "peer_id", "story"),
        {(loremesh.__version__, services.role, peer_id_text(services.identity.peer_id), story): 1.0},
    )
    yield _gauge("loremesh_tasks", "Tasks that run in this process.", trio.lowlevel.current_statistics().tasks_living)
    yield _gauge("loremesh_threads", "Threads of this process.", threading.active_count())


def _network(services: Services) -> Iterator[Figure]:
    network, heard = services.network, services.heard
    liveness = services.peers.liveness()
    yield Figure(
        "loremesh_peers",
        Kind.GAUGE,
        "Peers we have heard from, by what we think of them.",
        ("liveness",),
        {(str(kind),): liveness[kind] for kind in Liveness},
    )
    yield _gauge("loremesh_connected_peers", "Peers we have a connection to.", len(network.connected()))
    yield _gauge("loremesh_banned_peers", "Peers kept out for what they did.", len(services.scores.banned))
    waiting = network.events.statistics().current_buffer_used
    yield _gauge("loremesh_event_buffer_events", "Network events that wait to be handled.", waiting)
    yield _counter("loremesh_events_dropped_total", "Network events dropped for want of room.", network.dropped_events)
    yield _counter("loremesh_gossip_received_total", "Gossip messages taken in.", heard[GossipReceived])
    yield _counter("loremesh_gossip_refused_total", "Gossip messages that broke a rule.", heard[GossipRefused])
    yield _counter("loremesh_calls_served_total", "Requests of peers that ended, well or not.", heard[CallServed])
    yield _gauge("loremesh_cards", "Fresh cards of executors that are known.", len(services.cards.fresh()))


def _rules(tally: Tally) -> Iterator[Figure]:
    yield Figure(
        "loremesh_rejected_total",
        Kind.COUNTER,
        "What came from peers and broke a rule.",
        ("what", "fault"),
        {(what, str(fault)): count for (what, fault), count in tally.rejected.items()},
    )
    yield _counter("loremesh_equivocations_total", "Second headers of one producer on one parent.", tally.equivocations)


def _calls(server: LlmServer, tally: Tally) -> Iterator[Figure]:
    yield _counter("loremesh_llm_calls_total", "Clients' calls to models, answered in full.", tally.calls)
    yield Figure(
        "loremesh_llm_tokens_total",
        Kind.COUNTER,
        "Tokens of o200k_base in those calls.",
        ("of",),
        {("prompt",): tally.prompt_tokens, ("completion",): tally.completion_tokens},
    )
    yield _counter("loremesh_llm_busy_total", "Calls that there was no room for.", server.busy)
    yield Figure(
        "loremesh_llm_errors_total",
        Kind.COUNTER,
        "Calls that were refused or failed, by what the client was told.",
        ("kind",),
        {(str(kind),): server.errors[kind] for kind in ErrorKind},
    )
    yield _counter("loremesh_llm_unpaid_tokens_total", "Tokens that clients took and left unpaid.", server.unpaid.total)
    yield _gauge("loremesh_llm_slots", "Calls that can be answered at once; 0 once none are taken.", server.slots)
    yield _gauge("loremesh_llm_running", "Slots in use, by the node's own writing too.", server.running)


def _chain(story: Story, tally: Tally, accepted: int, now: Millis) -> Iterator[Figure]:
    store = story.chain.store
    yield _gauge("loremesh_head_height_blocks", "Height of the head.", store.tip.link.height)
    age = max(0.0, (now - store.tip.link.time) / 1000)
    yield _gauge("loremesh_head_age_seconds", "Time since the head's timestamp.", age)
    yield _counter("loremesh_blocks_accepted_total", "Valid blocks that came, on any branch.", accepted)
    yield _counter("loremesh_reorgs_total", "Heads that took the place of blocks of another branch.", tally.reorgs)
    yield _gauge("loremesh_reorg_deepest_blocks", "Most blocks that one reorganisation abandoned.", tally.deepest_reorg)
    yield _gauge("loremesh_blocks", "Valid blocks kept, all branches.", len(store.entries) - 1)
    yield _gauge("loremesh_tips", "Ends of branches.", len(store.tips))
    yield _gauge("loremesh_orphan_blocks", "Blocks that wait for their parents.", len(store.orphans))
    yield _gauge("loremesh_held_blocks", "Blocks from the near future that wait for their time.", len(store.held))
    yield _gauge("loremesh_surplus_blocks", "Headers beyond a producer's two on one parent.", len(store.surplus))
    yield _gauge("loremesh_chain_inbox_blocks", "Blocks that wait to be judged.", story.chain.queued)
    yield _gauge("loremesh_mempool_transactions", "Transactions that wait for a block.", len(story.chain.pool.waiting))


def _sync(story: Story) -> Iterator[Figure]:
    sync = story.sync
    yield _counter("loremesh_sync_rounds_total", "Times that a peer was asked for what is missing.", sync.rounds)
    yield _counter("loremesh_sync_blocks_total", "Blocks that came by asking, repeats included.", sync.pulled)
    yield _counter("loremesh_sync_failures_total", "Rounds that the peer's fault or silence ended.", sync.failures)


def _gauge(name: str, meaning: str, value: float) -> Figure:
    return Figure(name, Kind.GAUGE, meaning, (), {(): float(value)})


def _counter(name: str, meaning: str, value: float) -> Figure:
    return Figure(name, Kind.COUNTER, meaning, (), {(): float(value)})
