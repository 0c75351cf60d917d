"""The peers, one module each."""

from bench.peers.peer import Peer
from bench.peers.servers.echo_peer import EchoPeer
from bench.peers.servers.headrace_peer import HeadracePeer
from bench.peers.servers.litserve_peer import LitServePeer
from bench.peers.servers.mlserver_peer import MLServerPeer
from bench.peers.servers.mosec_peer import MosecPeer
from bench.peers.servers.triton_peer import TritonPeer

PEERS: dict[str, Peer] = {
    "echo": EchoPeer(),
    "headrace": HeadracePeer(),
    "triton": TritonPeer(),
    "mlserver": MLServerPeer(),
    "mosec": MosecPeer(),
    "litserve": LitServePeer(),
}
