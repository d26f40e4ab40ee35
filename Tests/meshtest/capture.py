"""A packet capture on one device, and just enough of Ethernet, IP and TCP to look at every byte of a
segment. It takes nothing from the code under test."""

import select
import socket
import struct
import threading
from dataclasses import dataclass

from .host import poll

ETH_P_ALL = 3
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
STAMP_KIND, STAMP_LENGTH, STAMP_EXPERIMENT = 254, 20, b"\x4d\x41"


class MalformedPacket(AssertionError):
    """A packet that no kernel should have sent."""


@dataclass
class Segment:
    """A TCP segment with the pseudo-header's fields."""

    source: str
    destination: str
    source_port: int
    destination_port: int
    sequence: int
    acknowledgment: int
    flags: int
    options: list  # (kind, bytes after kind and length)
    payload: bytes
    raw: bytes  # the TCP header and payload
    pseudo: bytes
    arriving: bool

    @property
    def is_syn(self):
        return self.flags & (SYN | ACK) == SYN

    @property
    def stamp(self):
        """The trace ID as hexadecimal digits, or None where the segment is not stamped."""
        found = [data for kind, data in self.options if kind == STAMP_KIND and data[:2] == STAMP_EXPERIMENT]
        if not found:
            return None
        if len(found) > 1 or len(found[0]) != STAMP_LENGTH - 2:
            raise MalformedPacket(f"options {self.options}")
        return found[0][2:].hex()

    @property
    def checksum_ok(self):
        """Whether the TCP checksum is right (only where nothing is left to be done by hardware)."""
        return _ones_complement_sum(self.pseudo + self.raw) == 0xFFFF


def _ones_complement_sum(data):
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def parse_options(data):
    """The TCP options of a header; a length that does not fit is an error."""
    found, at = [], 0
    while at < len(data):
        kind = data[at]
        if kind == 0:
            if any(data[at:]):
                raise MalformedPacket(f"bytes after the end of the options: {data.hex()}")
            break
        if kind == 1:
            at += 1
            continue
        if at + 1 >= len(data) or data[at + 1] < 2 or at + data[at + 1] > len(data):
            raise MalformedPacket(f"option of a wrong length: {data.hex()}")
        found.append((kind, data[at + 2 : at + data[at + 1]]))
        at += data[at + 1]
    return found


def parse_segment(frame, arriving=True):
    """The TCP segment of an Ethernet frame, or None where there is none."""
    kind = struct.unpack_from("!H", frame, 12)[0]
    packet = frame[14:]
    if kind == 0x0800:
        header = (packet[0] & 15) * 4
        length = struct.unpack_from("!H", packet, 2)[0]
        if packet[9] != socket.IPPROTO_TCP:
            return None
        if _ones_complement_sum(packet[:header]) != 0xFFFF:
            raise MalformedPacket(f"IP header checksum: {packet[:header].hex()}")
        source, destination, family = packet[12:16], packet[16:20], socket.AF_INET
        tcp = packet[header:length]
        pseudo = source + destination + struct.pack("!BBH", 0, 6, len(tcp))
    elif kind == 0x86DD:
        length = 40 + struct.unpack_from("!H", packet, 4)[0]
        if packet[6] != socket.IPPROTO_TCP:
            return None
        source, destination, family = packet[8:24], packet[24:40], socket.AF_INET6
        tcp = packet[40:length]
        pseudo = source + destination + struct.pack("!II", len(tcp), 6)
    else:
        return None
    if length > len(packet):
        raise MalformedPacket(f"an IP length of {length} in a frame with {len(packet)}")
    source_port, destination_port, sequence, acknowledgment, offset, flags = struct.unpack_from("!HHIIBB", tcp)
    header = (offset >> 4) * 4
    if header < 20 or header > len(tcp):
        raise MalformedPacket(f"a TCP header of {header} bytes")
    return Segment(
        socket.inet_ntop(family, source),
        socket.inet_ntop(family, destination),
        source_port,
        destination_port,
        sequence,
        acknowledgment,
        flags,
        parse_options(tcp[20:header]),
        tcp[header:],
        tcp,
        pseudo,
        arriving,
    )


def frame(segment, raw, to, sender="02:00:00:00:00:01"):
    """An Ethernet frame with the addresses of a captured segment, and `raw` as its TCP header and payload."""
    raw = bytearray(raw)
    raw[16:18] = b"\0\0"
    raw[16:18] = struct.pack("!H", 0xFFFF - _ones_complement_sum(segment.pseudo + raw))
    family = socket.AF_INET6 if ":" in segment.source else socket.AF_INET
    addresses = socket.inet_pton(family, segment.source) + socket.inet_pton(family, segment.destination)
    if family == socket.AF_INET6:
        kind, ip = b"\x86\xdd", struct.pack("!IHBB", 6 << 28, len(raw), socket.IPPROTO_TCP, 64) + addresses
    else:
        ip = struct.pack("!BBHIBBH", 0x45, 0, 20 + len(raw), 0, 64, socket.IPPROTO_TCP, 0) + addresses
        kind, ip = b"\x08\0", ip[:10] + struct.pack("!H", 0xFFFF - _ones_complement_sum(ip)) + ip[12:]
    return bytes.fromhex((to + sender).replace(":", "")) + kind + ip + raw


def send_frame(netns, frame, device="veth0"):
    """Puts an Ethernet frame on a device, as if the host behind it had sent it."""
    with netns.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((device, 0))
        sock.send(frame)


class Capture:
    """Records the TCP segments that pass a device, from `with` on; before any tc filter at ingress,
    after all of them at egress."""

    def __init__(self, netns, device="veth0", port=None):
        with netns.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 20)
        self._socket.bind((device, ETH_P_ALL))
        self._port = port
        self._stopped, self._stop = socket.socketpair()
        self._segments = []
        self.error = None
        self._thread = threading.Thread(target=self._read, daemon=True)

    def _read(self):
        while True:
            ready, _, _ = select.select([self._socket, self._stopped], [], [])
            if self._socket not in ready:
                return
            frame, address = self._socket.recvfrom(1 << 17)
            try:
                segment = parse_segment(frame, address[2] != socket.PACKET_OUTGOING)
            except (MalformedPacket, struct.error) as error:
                self.error = error
                continue
            if segment and self._port in (None, segment.source_port, segment.destination_port):
                self._segments.append(segment)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.close()
        self._thread.join()
        self._socket.close()
        self._stopped.close()

    @property
    def segments(self):
        if self.error:
            raise self.error
        return list(self._segments)

    def wait(self, wanted, count=1, timeout=10.0):
        """The first `count` segments for which `wanted` holds, waiting for them."""

        def found():
            matching = [segment for segment in self.segments if wanted(segment)]
            return matching[:count] if len(matching) >= count else None

        return poll(found, timeout, what=f"{count} segments captured")

    def syns(self, count=1):
        return self.wait(lambda segment: segment.is_syn, count)
