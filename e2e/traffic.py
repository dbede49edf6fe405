"""Programs that pods run as `python -c`: what they do on the network is known to the packet."""

# Nobody listens there, in a network namespace of its own.
NOBODY = 4499

# Takes a network namespace's loopback up, and sends so many datagrams of 12 bytes to nobody. For `unshare --net`.
DATAGRAMS = f"""
import fcntl, socket, struct, sys
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
fcntl.ioctl(one, 0x8914, struct.pack("16sh14x", b"lo", 1))
for _ in range(int(sys.argv[1])):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"nobody hears", ("127.0.0.1", {NOBODY}))
"""

# So many sessions with itself: the client sends 10 bytes and gets 20, and then a RST. Prints the ports of client and server of each.
RESETS = """
import socket, struct, sys
listener = socket.create_server(("127.0.0.1", 0))
for _ in range(int(sys.argv[1])):
    client = socket.create_connection(listener.getsockname())
    server = listener.accept()[0]
    client.sendall(bytes(10))
    server.recv(10, socket.MSG_WAITALL)
    server.sendall(bytes(20))
    client.recv(20, socket.MSG_WAITALL)
    print(client.getsockname()[1], listener.getsockname()[1])
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    server.close()
    try:
        client.recv(1)
    except ConnectionResetError:
        client.close()
"""

# Sends 700 bytes to itself, which are not heard at first. Prints how many segments were sent again.
LOSSY = """
import ctypes, socket, struct, time
SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
server = listener.accept()[0]
# One instruction: take 0 bytes of each packet.
nothing = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))
server.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(nothing)))
client.sendall(bytes(700))
def told(at):
    return struct.unpack_from("I", client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), at)[0]
def sent_again():
    return told(100)
def unacknowledged():
    return told(24)
while sent_again() < 2:
    time.sleep(0.001)
server.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
server.recv(700, socket.MSG_WAITALL)
# Nothing more is sent then.
while unacknowledged():
    time.sleep(0.001)
print(sent_again())
"""

# Connects to a port where nobody listens, so many times.
REFUSED = """
import socket, sys
for _ in range(int(sys.argv[2])):
    try:
        socket.create_connection(("127.0.0.1", int(sys.argv[1])))
    except ConnectionRefusedError:
        pass
"""
