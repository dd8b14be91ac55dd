"""A stand-in for a runtime with HTTP on its socket.

It binds a socket, notes each request, ignores SIGTERM, and ends with code 7 on a request that holds a word; where that is
`never`, it does not answer. Its last five arguments: socket, notes, word, and what a runtime's command line has of these.
"""

import os, signal, socket, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
path, notes, last = sys.argv[-5:-2]
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen()
while True:
    peer, _ = listener.accept()
    text = peer.recv(4096).decode()
    if not text:
        continue
    with open(notes, "a") as file:
        file.write(text.split("\r\n")[0] + " " + text.split("\r\n")[-1] + "\n")
    if last == "never":
        continue
    peer.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
    if last in text:
        os._exit(7)
