// An unmodified js-libp2p node that does what it is told: one JSON object a line on stdin, one answer a line on stdout.
//
// A command is {id, do, ...}, its answer {id, value} or {id, error}; whatever comes unasked is {event, ...}. Bytes are
// hexadecimal. The first line printed is {event: "ready", ...}. It ends when stdin does.

import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { circuitRelayTransport } from '@libp2p/circuit-relay-v2'
import { generateKeyPair } from '@libp2p/crypto/keys'
import { gossipsub } from '@libp2p/gossipsub'
import { identify } from '@libp2p/identify'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { noise } from '@libp2p/noise'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { webSockets } from '@libp2p/websockets'
import { yamux } from '@libp2p/yamux'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { CID } from 'multiformats/cid'
import * as raw from 'multiformats/codecs/raw'
import { sha256 } from 'multiformats/hashes/sha2'

const options = JSON.parse(process.argv[2] ?? '{}')
const PATIENCE = 20_000
const LENGTH = 4

const bytes = hex => Uint8Array.from(Buffer.from(hex, 'hex'))
const hex = data => Buffer.from(data).toString('hex')
const tell = line => process.stdout.write(JSON.stringify(line) + '\n')
const patiently = () => AbortSignal.timeout(PATIENCE)
const cidOf = async key => CID.createV1(raw.code, await sha256.digest(new TextEncoder().encode(key)))

// A native module, which npm does not have for every machine: only who asks for it needs it.
const quic = options.quic ? [(await import('@chainsafe/libp2p-quic')).quic()] : []

const node = await createLibp2p({
  privateKey: await generateKeyPair(options.key ?? 'secp256k1'),
  addresses: { listen: options.listen ?? ['/ip4/127.0.0.1/tcp/0'] },
  transports: [tcp(), webSockets(), circuitRelayTransport(), ...quic],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  connectionGater: { denyDialMultiaddr: () => false }, // the default refuses loopback
  connectionMonitor: { enabled: false }, // its pings would get in the way of ours, which may be one at a time
  services: {
    identify: identify(),
    ping: ping(),
    pubsub: gossipsub({ allowPublishToZeroTopicPeers: true, ...options.gossip }),
    dht: kadDHT({ protocol: '/loremesh/kad/1.0.0', clientMode: false, peerInfoMapper: passthroughMapper })
  }
})
const { dht, ping: pinger, pubsub } = node.services
const connectionTo = peer => node.getConnections().find(one => one.remotePeer.toString() === peer)

pubsub.addEventListener('gossipsub:message', ({ detail: { msg, propagationSource } }) => {
  tell({ event: 'gossip', topic: msg.topic, data: hex(msg.data), from: msg.from.toString(), by: propagationSource.toString() })
})

// The canonical MessagePack of the wire format: arrays, byte strings, text and unsigned integers, each at its shortest.
function pack (value) {
  if (Array.isArray(value)) {
    return Buffer.concat([head(value.length, [[15, 0x90]], [[2, 0xdc], [4, 0xdd]]), ...value.map(pack)])
  }
  if (value instanceof Uint8Array) {
    return Buffer.concat([head(value.length, [], [[1, 0xc4], [2, 0xc5], [4, 0xc6]]), value])
  }
  if (typeof value === 'string') {
    const text = Buffer.from(value.normalize('NFC'))
    return Buffer.concat([head(text.length, [[31, 0xa0]], [[1, 0xd9], [2, 0xda], [4, 0xdb]]), text])
  }
  return head(value, [[127, 0]], [[1, 0xcc], [2, 0xcd], [4, 0xce], [8, 0xcf]])
}

function head (number, small, sizes) {
  for (const [most, mark] of small) {
    if (number <= most) return Buffer.from([mark + number])
  }
  const [size, mark] = sizes.find(([size]) => BigInt(number) < 1n << BigInt(8 * size))
  const digits = Buffer.alloc(8)
  digits.writeBigUInt64BE(BigInt(number))
  return Buffer.concat([Buffer.from([mark]), digits.subarray(8 - size)])
}

function framed (body) {
  const length = Buffer.alloc(LENGTH)
  length.writeUInt32BE(body.length)
  return Buffer.concat([length, body])
}

async function readAll (stream) {
  const pieces = []
  for await (const piece of stream) pieces.push(Buffer.from(piece.subarray()))
  return Buffer.concat(pieces)
}

const commands = {
  async dial ({ address }) {
    const connection = await node.dial(multiaddr(address), { signal: patiently() })
    return connection.remotePeer.toString()
  },
  async peers () {
    return node.getPeers().map(String)
  },
  async protocols ({ peer }) { // as identify told them
    const known = (await node.peerStore.all()).find(one => one.id.toString() === peer)
    return known?.protocols ?? []
  },
  async ping ({ peer }) {
    const signal = patiently()
    for (;;) {
      try {
        return await pinger.ping(connectionTo(peer).remotePeer, { signal })
      } catch (error) { // one at a time is all there may be, and the DHT pings too
        if (error.name !== 'TooManyOutboundProtocolStreamsError' || signal.aborted) throw error
        await sleep(50)
      }
    }
  },
  async subscribe ({ topic }) {
    pubsub.subscribe(topic)
  },
  async subscribers ({ topic }) {
    return pubsub.getSubscribers(topic).map(String)
  },
  async publish ({ topic, data }) {
    await pubsub.publish(topic, bytes(data))
  },
  async mesh ({ topic }) {
    return pubsub.getMeshPeers(topic)
  },
  async score ({ peer }) {
    return pubsub.getScore(peer)
  },
  async provide ({ key }) {
    for await (const _ of dht.provide(await cidOf(key), { signal: patiently() })) { /* to its end */ }
  },
  async providers ({ key }) {
    const found = new Set()
    for await (const event of dht.findProviders(await cidOf(key), { signal: patiently() })) {
      if (event.name === 'PROVIDER') event.providers.forEach(one => found.add(one.id.toString()))
    }
    return [...found]
  },
  async call ({ peer, protocol, type, payload }) { // one envelope there, whatever comes back
    const connection = connectionTo(peer)
    const envelope = [1, type, Date.now(), node.peerId.toMultihash().bytes, new Uint8Array(), pack(payload)]
    const stream = await connection.newStream(protocol, { signal: patiently() })
    stream.send(framed(pack(envelope)))
    await stream.close({ signal: patiently() })
    return hex(await readAll(stream))
  },
  async send ({ peer, protocol, data }) { // anything at all, and tell how the stream ends
    const stream = await connectionTo(peer).newStream(protocol, { signal: patiently() })
    try {
      stream.send(bytes(data))
      await readAll(stream)
      return 'ended'
    } catch (error) {
      return error.name
    }
  }
}

tell({ event: 'ready', peer: node.peerId.toString(), addresses: node.getMultiaddrs().map(String) })
for await (const line of createInterface({ input: process.stdin })) {
  const { id, do: name, ...rest } = JSON.parse(line)
  commands[name](rest).then(
    value => tell({ id, value: value ?? null }),
    error => tell({ id, error: `${error.name}: ${error.message}` }))
}
await node.stop()
process.exit(0)
