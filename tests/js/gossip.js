// A graph of js-libp2p nodes that gossip, all in this process; talks as tests/bench/gossip_graph.py does. It looks at
// nothing but the gossip signatures, whatever the graph says of checking.

import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { privateKeyFromRaw } from '@libp2p/crypto/keys'
import { gossipsub } from '@libp2p/gossipsub'
import { identify } from '@libp2p/identify'
import { noise } from '@libp2p/noise'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { yamux } from '@libp2p/yamux'
import { createLibp2p } from 'libp2p'

const TOPIC = '/loremesh/bench/blocks'
const LOST_AFTER = 10_000
const MESHES_FORM = 3_500

const keyOf = data => Buffer.from(data).toString('latin1')
let missing = new Map()
let finished = new Map()
let arrivals = 0
let changed = () => {}

async function start (secret, others) {
  const node = await createLibp2p({
    start: false,
    privateKey: privateKeyFromRaw(Buffer.from(secret, 'hex')),
    addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
    transports: [tcp()],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    connectionGater: { denyDialMultiaddr: () => false }, // the default refuses loopback
    connectionManager: { inboundConnectionThreshold: Infinity }, // the default refuses more than 5 a second
    connectionMonitor: { enabled: false }, // it closes connections when the machine is busy
    services: {
      identify: identify(),
      ping: ping(),
      pubsub: gossipsub({
        D: 6,
        Dlo: 4,
        Dhi: 12,
        heartbeatInterval: 1000,
        scoreParams: { IPColocationFactorWeight: 0 } // the default hears nobody who has more than ten peers on one IP
      })
    }
  })
  const { pubsub } = node.services
  pubsub.protocols = ['/meshsub/1.1.0'] // 1.2 costs time: it tells all neighbours which messages it has
  await node.start()
  pubsub.subscribe(TOPIC)
  pubsub.addEventListener('gossipsub:message', ({ detail: { msg } }) => {
    if (msg.from.equals(node.peerId)) return
    const key = keyOf(msg.data)
    const left = (missing.get(key) ?? others) - 1
    arrivals++
    missing.set(key, left)
    if (left === 0) {
      finished.set(key, performance.now())
      changed()
    }
  })
  return node
}

async function play (nodes, pause, blocks) {
  missing = new Map()
  finished = new Map()
  arrivals = 0
  const started = new Map()
  const busy = process.cpuUsage()
  const begin = performance.now()
  const until = moment => sleep(Math.max(0, moment - performance.now()))
  let number = 0
  for (const [publisher, hex] of blocks) {
    await until(begin + 1000 * pause * number++)
    const data = Uint8Array.from(Buffer.from(hex, 'hex'))
    started.set(keyOf(data), performance.now())
    await nodes[publisher].services.pubsub.publish(TOPIC, data)
  }
  const lost = performance.now() + LOST_AFTER
  while (finished.size < started.size && performance.now() < lost) {
    await Promise.race([new Promise(resolve => { changed = resolve }), until(lost)])
  }
  await until(begin + 1000 * pause * blocks.length) // a share of the upkeep for every block
  const taken = [...started].filter(([key]) => finished.has(key)).map(([key, before]) => (finished.get(key) - before) / 1000)
  const { user, system } = process.cpuUsage(busy)
  return [taken, arrivals, (user + system) / 1e6]
}

let nodes
for await (const line of createInterface({ input: process.stdin })) {
  if (nodes === undefined) {
    const [secrets, edges] = JSON.parse(line)
    nodes = await Promise.all(secrets.map(secret => start(secret, secrets.length - 1)))
    for (const [dialler, dialled] of edges) {
      await nodes[dialler].dial(nodes[dialled].getMultiaddrs()[0])
    }
    await sleep(MESHES_FORM)
    console.log('ready')
  } else {
    const [pause, blocks] = JSON.parse(line)
    console.log(JSON.stringify(await play(nodes, pause, blocks)))
  }
}
process.exit(0)
