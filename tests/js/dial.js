// Two js-libp2p nodes in one process. For every line read from stdin, `count pause`, one dials the other `count` times
// with `pause` milliseconds before each; the answer is one line of JSON: the seconds each dial took, from calling it to
// a connection that can be used.

import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { identify } from '@libp2p/identify'
import { noise } from '@libp2p/noise'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { yamux } from '@libp2p/yamux'
import { createLibp2p } from 'libp2p'

function node () {
  return createLibp2p({
    addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
    transports: [tcp()],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    connectionGater: { denyDialMultiaddr: () => false }, // the default refuses loopback
    connectionManager: { inboundConnectionThreshold: Infinity }, // the default refuses more than 5 a second
    services: { identify: identify(), ping: ping() }
  })
}

async function isAlone (one) {
  while (one.getConnections().length > 0) {
    await sleep(1)
  }
}

const [dialler, listener] = await Promise.all([node(), node()])
const address = listener.getMultiaddrs()[0]

for await (const line of createInterface({ input: process.stdin })) {
  const [count, pause] = line.split(' ').map(Number)
  const taken = []
  for (let dial = 0; dial < count; dial++) {
    await sleep(pause)
    const before = performance.now()
    const connection = await dialler.dial(address)
    taken.push((performance.now() - before) / 1000)
    await connection.close()
    await Promise.all([isAlone(dialler), isAlone(listener)])
  }
  console.log(JSON.stringify(taken))
}
await Promise.all([dialler.stop(), listener.stop()])
