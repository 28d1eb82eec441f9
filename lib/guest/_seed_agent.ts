/**
 * Toolsmith's own guest agent, for images without one: a program for Python 3.6 or
 * later, which cloud-init needs anyway. It implements the part of the QEMU guest agent
 * protocol that Toolsmith uses (docs/interop/qemu-ga-ref), on the same port.
 */

/** The version that the agent reports in `guest-info`. */
export const SEED_AGENT_NAME = "toolsmith";

/**
 * Waits until cloud-init has finished, and exits if an agent of the image already has
 * the port open.
 */
export const SEED_AGENT_SOURCE = String.raw`
import base64, glob, json, os, select, signal, subprocess, sys, tempfile, time

PORT = "org.qemu.guest_agent.0"
DONE = "/run/cloud-init/result.json"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
running = {}


def open_port():
    while True:
        for name in glob.glob("/sys/class/virtio-ports/*/name"):
            with open(name) as file:
                if file.read().strip() != PORT:
                    continue
            if os.path.exists(DONE):
                device = os.path.basename(os.path.dirname(name))
                return os.open("/dev/" + device, os.O_RDWR)
        time.sleep(0.1)


def execute(path, arg=(), **more):
    # Nobody asks for most that have ended: they would stay as zombies.
    for process, _ in running.values():
        process.poll()
    file = tempfile.TemporaryFile() if more.get("capture-output") else None
    process = subprocess.Popen(
        [path, *arg],
        stdin=subprocess.DEVNULL,
        stdout=file or subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"PATH": PATH},
        start_new_session=True,
    )
    running[process.pid] = process, file
    return {"pid": process.pid}


def status(pid):
    process, file = running[pid]
    code = process.poll()
    if code is None:
        return {"exited": False}
    del running[pid]
    found = {"exited": True}
    if code >= 0:
        found["exitcode"] = code
    if file:
        file.seek(0)
        found["out-data"] = base64.b64encode(file.read()).decode()
    return found


COMMANDS = {
    "guest-sync": lambda id: id,
    "guest-info": lambda: {"version": "${SEED_AGENT_NAME}"},
    "guest-exec": execute,
    "guest-exec-status": status,
}


def answer(line):
    request = {}
    try:
        request = json.loads(line.decode())
        command = COMMANDS[request["execute"]]
        found = {"return": command(**request.get("arguments") or {})}
    except Exception as error:
        words = "%s: %s" % (type(error).__name__, error)
        found = {"error": {"class": "GenericError", "desc": words}}
    if isinstance(request, dict) and "id" in request:
        found["id"] = request["id"]
    return json.dumps(found).encode() + b"\n"


def send(port, data):
    while data:
        data = data[os.write(port, data):]


def serve(port):
    ready = select.poll()
    ready.register(port, select.POLLIN)
    rest = b""
    while True:
        ready.poll()
        data = os.read(port, 65536)
        if not data:
            # Nobody is connected on the host.
            time.sleep(0.05)
            continue
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            # What stands before such a byte is to be forgotten.
            line = line.rpartition(b"\xff")[2]
            if line.strip():
                send(port, answer(line))


os.setsid()
# A shell ignores them in what it puts into the background, and so would all commands.
for number in signal.SIGINT, signal.SIGQUIT:
    signal.signal(number, signal.SIG_DFL)
try:
    serve(open_port())
except OSError:
    sys.exit(0)
`;
