/**
 * Opens the channel of a command: virtio-serial ports of the VM, and the guest
 * shell that connects them to the command's standard streams.
 */
import { ToolsmithError } from "../errors.ts";
import { VmDisconnectedError } from "../qemu/errors.ts";
import type { Monitor } from "../qemu/monitor.ts";
import { abortable, settlesWithin, sleep } from "../system/time.ts";
import { sendLine } from "./_command_stdin.ts";
import {
  acquireCommandPorts,
  type CommandPorts,
  unplugOrphanedPorts,
} from "./_command_ports.ts";
import {
  type AgentProcessStatus,
  queryProcessStatus,
  startShellViaAgent,
} from "./_agent_process.ts";
import { RUN_ON_PORTS_SCRIPT } from "./_command_scripts.ts";

/** `input` and `start` are arguments of {@linkcode RUN_ON_PORTS_SCRIPT}. */
export interface GuestShellOptions {
  input: string;
  start: string[];
  signal?: AbortSignal;
}

/** Sent by the guest shell when it has opened the ports. */
const READY_LINE = "ready\n";
const READY_LINE_TIMEOUT_MS = 30_000;
const SHELL_STATUS_POLL_MS = 500;
const READY_LINE_AFTER_EXIT_MS = 3_000;
const FREE_PORT_POLL_MS = 100;
const ATTEMPTS_BEFORE_WAIT_IS_REPORTED = 20;
/** An owner may be killed while others wait for its ports. */
const ATTEMPTS_PER_ORPHAN_CHECK = 20;

/**
 * Hot-plugs ports and starts the command on them. A VM has ports for at least ten
 * commands at once; the next one waits until a command has ended. `onWait` is called
 * once when the VM has had no free port for 2 s.
 */
export async function openCommandChannel(
  monitor: Monitor,
  shell: GuestShellOptions,
  onWait?: () => void,
): Promise<CommandPorts> {
  const { signal } = shell;
  for (let attempt = 0;; attempt++) {
    // One at a time: QEMU drops port events when a slow guest gets many at once.
    const ports = await monitor.runExclusively(async () => {
      if (attempt % ATTEMPTS_PER_ORPHAN_CHECK === 0) {
        await unplugOrphanedPorts(monitor, signal);
      }
      return await startShellOnPorts(monitor, shell);
    }, signal);
    if (ports) return ports;
    if (attempt === ATTEMPTS_BEFORE_WAIT_IS_REPORTED) onWait?.();
    await sleep(FREE_PORT_POLL_MS, signal);
  }
}

/**
 * Plugs ports and starts a guest shell on them; `undefined` if the VM has no free port.
 * The caller holds {@linkcode Monitor.runExclusively}.
 */
export async function startShellOnPorts(
  monitor: Monitor,
  { input, start, signal }: GuestShellOptions,
): Promise<CommandPorts | undefined> {
  using undo = new DisposableStack();
  const hasStdin = input === "yes";
  const ports = undo.use(
    await acquireCommandPorts(monitor, { hasStdin, signal }),
  );
  if (!ports) return undefined;
  const { baseName, stderr, endMarker } = ports;
  // A warm shell has no arguments yet: it gets the marker with each request.
  if (start.length > 1) await abortable(sendLine(stderr, endMarker), signal);
  const args = [RUN_ON_PORTS_SCRIPT, "sh", baseName, input, ...start];
  ports.shellPid = await startShellViaAgent(monitor, args, { signal });
  await waitForReadyLine(monitor, ports, signal);
  undo.move();
  return ports;
}

/** Waits for the guest shell's ready line while the shell is alive. */
export async function waitForReadyLine(
  monitor: Monitor,
  { stderr, shellPid }: CommandPorts,
  signal?: AbortSignal,
): Promise<void> {
  const deadline = performance.now() + READY_LINE_TIMEOUT_MS;
  const readyLine = readReadyLine(stderr);
  const arrives = (ms: number) => settlesWithin(readyLine, ms, { signal });
  // A quick command may exit before its ready line is read here.
  let status: AgentProcessStatus | undefined;
  let wait = SHELL_STATUS_POLL_MS;
  while (!await arrives(wait)) {
    const isLate = performance.now() > deadline;
    if (isLate || status?.exited) throw portsNotOpenedError(status);
    status = await queryProcessStatus(monitor, shellPid!, signal);
    if (status.exited) wait = READY_LINE_AFTER_EXIT_MS;
  }
  if (await readyLine !== READY_LINE) throw portsNotOpenedError();
}

/** Reads no byte beyond the ready line: the command's output follows. */
async function readReadyLine(port: Deno.UnixConn): Promise<string> {
  let text = "";
  while (text.length < READY_LINE.length) {
    const rest = new Uint8Array(READY_LINE.length - text.length);
    const count = await port.read(rest).catch(() => null);
    if (count === null) throw new VmDisconnectedError();
    text += new TextDecoder("latin1").decode(rest.subarray(0, count));
  }
  return text;
}

function portsNotOpenedError(status?: AgentProcessStatus): ToolsmithError {
  const reason = status?.exitCode === undefined
    ? ""
    : `: its shell exited with status ${status.exitCode}`;
  return new ToolsmithError(
    "guest_failed",
    `Cannot open the command's virtio-serial ports in the guest${reason}`,
    { hint: "use an image with the virtio_console driver, /dev and /sys" },
  );
}
