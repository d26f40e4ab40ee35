"""Reads stamps off the wire: an AF_PACKET socket on the far end of the veth pair, and no help from the agent.

Prints a JSON line for each SYN that arrives: where it is from, where to, and the trace ID in its
options, if any. Ends with stdin.
"""

import ctypes
import json
import socket
import struct
import sys
import threading

KIND, LENGTH, EXPERIMENT = 254, 20, 0x4D41
SO_ATTACH_FILTER = 26
ETH_P_ALL, ETH_P_IP, ETH_P_IPV6 = 0x0003, 0x0800, 0x86DD

# Classic BPF, so that only TCP SYNs without ACK come up here: (code, jump if true, if false, k).
FILTER = [
    (0x28, 0, 0, 12),  # the Ethernet type
    (0x15, 0, 4, ETH_P_IP),
    (0x30, 0, 0, 23),  # the protocol
    (0x15, 0, 10, 6),
    (0xB1, 0, 0, 14),  # x = the length of the IPv4 header
    (0x05, 0, 0, 4),
    (0x15, 0, 7, ETH_P_IPV6),
    (0x30, 0, 0, 20),  # the next header
    (0x15, 0, 5, 6),
    (0x01, 0, 0, 40),  # x = the length of the IPv6 header
    (0x50, 0, 0, 14 + 13),  # the TCP flags
    (0x54, 0, 0, 0x12),  # SYN and ACK
    (0x15, 0, 1, 0x02),
    (0x06, 0, 0, 0xFFFF),
    (0x06, 0, 0, 0),
]


def attach_filter(packets):
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in FILTER)
    memory = ctypes.create_string_buffer(code)
    program = struct.pack("@HP", len(FILTER), ctypes.addressof(memory))
    packets.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def stamp(options):
    """The trace ID in the bytes of a SYN's options, or None."""
    while options and options[0] != 0:
        if options[0] == 1:
            options = options[1:]
            continue
        if len(options) < 2 or options[1] < 2:
            return None
        kind, length = options[0], options[1]
        if kind == KIND and length == LENGTH and struct.unpack("!H", options[2:4])[0] == EXPERIMENT:
            return options[4:20].hex()
        options = options[length:]
    return None


def read_syn(frame):
    """(source, destination, trace ID or None) of an Ethernet frame that holds a SYN."""
    if struct.unpack("!H", frame[12:14])[0] == ETH_P_IP:
        source, destination = (socket.inet_ntop(socket.AF_INET, frame[n : n + 4]) for n in (26, 30))
        tcp = frame[14 + (frame[14] & 15) * 4 :]
    else:
        source, destination = (
            f"[{socket.inet_ntop(socket.AF_INET6, frame[n : n + 16])}]" for n in (22, 38)
        )
        tcp = frame[54:]
    ports = struct.unpack("!HH", tcp[:4])
    options = tcp[20 : (tcp[12] >> 4) * 4]
    return f"{source}:{ports[0]}", f"{destination}:{ports[1]}", stamp(options)


def main():
    packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    attach_filter(packets)
    packets.bind((sys.argv[1], ETH_P_ALL))

    def read():
        while True:
            frame, address = packets.recvfrom(65536)
            if address[2] == socket.PACKET_OUTGOING:
                continue
            source, destination, trace = read_syn(frame)
            print(json.dumps({"from": source, "to": destination, "trace": trace}), flush=True)

    threading.Thread(target=read, daemon=True).start()
    print(json.dumps({"ready": True}), flush=True)
    sys.stdin.read()


main()
