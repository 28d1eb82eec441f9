/**
 * A fake VM without QEMU: this process plays its QMP monitor, guest agent and
 * virtio-serial ports.
 */
import { join } from "@std/path";
import { WARM_SHELL_SCRIPT } from "../../lib/guest/_command_scripts.ts";
import { portDeviceId, STDIO_PORTS } from "../../lib/qemu/device_ids.ts";
import {
  FIRST_COMMAND_PORT_NAME,
  portFileName,
  VM_FILES,
} from "../../lib/qemu/vm_dir.ts";
import { temporaryDir } from "./directory.ts";

/** A request to the QMP monitor or the guest agent. */
export interface FakeRequest {
  execute: string;
  arguments: Record<string, unknown>;
  id: number;
}

/** The guest's end of a command's ports. */
export interface FakeCommand {
  /** The words after the ports' name: input or terminal, then the script. */
  words: string[];
  marker: string;
  out: Deno.Conn;
  err: Deno.Conn;
  /** What the command reads, if it has input. */
  in?: Deno.Conn;
}

export interface FakeMachineOptions {
  /**
   * The agent's answer to a command: text is sent unchanged, a function may send
   * anything, another value is the command's result, and `undefined` sends nothing.
   *
   * @default {honest}
   */
  agent?: (request: FakeRequest) => unknown;
  /** Called for each request to the QMP monitor. */
  qemu?: (request: FakeRequest) => void;
  /** Runs a command after the host's greeting. @default it ends with 0 */
  command?: (command: FakeCommand) => Promise<void>;
  /** How many ports there are. @default {Infinity} */
  ports?: number;
  /** Whether ports for the first command exist at boot. @default {false} */
  prepared?: boolean;
  /** Called when its power button is pressed. */
  onPowerButton?: () => void;
  /** Whether the agent reads its connection. @default {true} */
  reads?: boolean;
}

/** The fake VM; disposing it ends it. */
export interface FakeMachine extends AsyncDisposable {
  /** Its directory. */
  dir: string;
  /** Ports that are plugged in. */
  plugged: Set<string>;
  /** Sockets that QEMU closes a little later. */
  chardevs: Set<string>;
  /** The guest's end of a port that exists at boot. */
  first(end: typeof STDIO_PORTS[number]): Promise<Deno.Conn>;
}

/** The answers of a correct agent. */
export function honest({ execute }: FakeRequest): unknown {
  if (execute === "guest-exec") return { pid: 7 };
  if (execute === "guest-exec-status") return { exited: false };
  return {};
}

const GREETING =
  '{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}}}\n';

/** Starts the machine. */
export async function fakeMachine(
  options: FakeMachineOptions = {},
): Promise<FakeMachine> {
  const { agent = honest, command = succeed, ports = Infinity } = options;
  const dir = await temporaryDir();
  const plugged = new Set<string>();
  const chardevs = new Set<string>();
  const busy = new Set<string>();
  const sockets = new Map<string, Deno.Listener>();
  const streams = new Map<string, Promise<Deno.Conn>>();
  const connections = new Set<Deno.Conn>();
  const listen = (path: string, onConnection: (it: Deno.Conn) => unknown) => {
    const listener = Deno.listen({ transport: "unix", path });
    sockets.set(path, listener);
    (async () => {
      for await (const connection of listener) {
        connections.add(connection);
        onConnection(connection);
      }
    })().catch(() => {});
  };
  const plug = (id: string, path: string) => {
    const accepted = Promise.withResolvers<Deno.Conn>();
    streams.set(id, accepted.promise);
    chardevs.add(id);
    listen(path, accepted.resolve);
  };
  if (options.prepared) {
    for (const end of STDIO_PORTS) {
      const id = portFileName(FIRST_COMMAND_PORT_NAME, end);
      plug(id, join(dir.path, id));
      plugged.add(portDeviceId(id));
    }
  }
  const qmp = (asked: FakeRequest) => {
    const { execute, arguments: args, id: request } = asked;
    options.qemu?.(asked);
    const id = String(args?.id);
    const data = args?.backend as
      | { data: { addr: { data: { path: string } } } }
      | undefined;
    if (execute === "system_powerdown") options.onPowerButton?.();
    if (execute === "chardev-add") plug(id, data!.data.addr.data.path);
    if (execute === "device_add") {
      if (plugged.size >= ports) {
        return refusal("Maximum ports reached", request);
      }
      plugged.add(id);
    }
    if (execute === "device_del") {
      if (!plugged.delete(id)) return refusal(`No device ${id}`, request);
      busy.add(id);
      setTimeout(() => busy.delete(id), 5);
    }
    if (execute === "chardev-remove") {
      if (busy.has(`port.${id}`)) {
        return refusal(`Chardev '${id}' is busy`, request);
      }
      if (!chardevs.delete(id)) return refusal(`No chardev ${id}`, request);
    }
    return {};
  };
  const start = async ({ arguments: args }: FakeRequest) => {
    const [name, ...words] = (args.arg as string[]).slice(3);
    const port = (end: string) => streams.get(`${name}.${end}`)!;
    const out = await port("out");
    const err = await port("err");
    if (words[1] === WARM_SHELL_SCRIPT) return await say(err, "ready\n");
    const input = words[0] === "yes" ? await port("in") : undefined;
    const marker = await readLine(err);
    await command({ words, marker, out, err, in: input });
  };
  listen(join(dir.path, VM_FILES.qmp), (connection) => {
    answer(connection, qmp, GREETING);
  });
  listen(join(dir.path, VM_FILES.agent), (connection) => {
    if (options.reads === false) return;
    answer(connection, (request) => {
      if (request.execute === "guest-sync") return request.arguments.id;
      if (request.execute === "guest-exec") start(request).catch(() => {});
      return agent(request);
    });
  });
  return {
    dir: dir.path,
    plugged,
    chardevs,
    first: (end) => streams.get(portFileName(FIRST_COMMAND_PORT_NAME, end))!,
    async [Symbol.asyncDispose]() {
      for (const socket of sockets.values()) socket.close();
      for (const connection of connections) close(connection);
      await dir[Symbol.asyncDispose]();
    },
  };
}

/** An error response of QEMU or the agent. */
export function refusal(desc: unknown, id?: number): string {
  const error = { class: "GenericError", desc };
  return JSON.stringify({ error, id }) + "\n";
}

export async function say(connection: Deno.Conn, data: string | Uint8Array) {
  const bytes = typeof data === "string"
    ? new TextEncoder().encode(data)
    : data;
  for (let at = 0; at < bytes.length;) {
    at += await connection.write(bytes.subarray(at));
  }
}

async function succeed({ marker, out, err }: FakeCommand) {
  await say(err, "ready\n");
  await say(out, `${marker}0\n`);
  await say(err, `${marker}\n`);
}

async function answer(
  connection: Deno.Conn,
  answerTo: (request: FakeRequest) => unknown,
  greeting = "",
) {
  try {
    await say(connection, greeting);
    while (true) {
      const line = await readLine(connection);
      const request = JSON.parse(line.replaceAll("\xff", ""));
      const said = answerTo(request);
      if (typeof said === "function") await said(connection);
      else if (typeof said === "string") await say(connection, said);
      else if (said !== undefined) {
        const message = { return: said, id: request.id };
        await say(connection, JSON.stringify(message) + "\n");
      }
    }
  } catch {
    // The host has closed the connection, perhaps in the middle of an answer.
    close(connection);
  }
}

/** Reads framed input, as the guest's shell does. */
export async function readFrames(input: Deno.Conn): Promise<Uint8Array> {
  const frames: BlobPart[] = [];
  while (true) {
    const [size, count = 0] = (await readLine(input)).split(" ").map(Number);
    const frame = new Uint8Array(size * count);
    if (frame.length === 0) return await new Blob(frames).bytes();
    for (let at = 0; at < frame.length;) {
      at += await input.read(frame.subarray(at)) ?? frame.length;
    }
    frames.push(frame);
  }
}

/** Reads a line, or so many bytes, and nothing beyond. */
export async function readLine(
  connection: Deno.Conn,
  most = Infinity,
): Promise<string> {
  const bytes: number[] = [];
  const byte = new Uint8Array(1);
  while (await connection.read(byte) !== null) {
    if (byte[0] !== 0x0a) bytes.push(byte[0]);
    if (byte[0] === 0x0a || bytes.length === most) {
      return new TextDecoder("latin1").decode(new Uint8Array(bytes));
    }
  }
  throw new Error("the host has hung up");
}

function close(connection: Deno.Conn) {
  try {
    connection.close();
  } catch {
    // It was closed before.
  }
}
