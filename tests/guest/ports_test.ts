import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import {
  plugPorts,
  type Ports,
  unplugAbandoned,
} from "../../lib/guest/_ports.ts";
import { RefusedError } from "../../lib/qemu/errors.ts";
import type { Monitor } from "../../lib/qemu/monitor.ts";
import type { Command } from "../../lib/qemu/qmp.ts";
import { lock, tryLock } from "../../lib/system/lock.ts";
import { temporaryDir } from "../support/directory.ts";
import { failure } from "../support/failure.ts";
import { hurriedTimers } from "../support/timers.ts";

/** A monitor whose QEMU opens the sockets that it is asked to. */
async function machine(
  refuse: (command: Command) => string | undefined = () => undefined,
) {
  const dir = await temporaryDir();
  const asked: Command[] = [];
  const background: Promise<void>[] = [];
  const listeners: Deno.Listener[] = [];
  const accepted: Deno.Conn[] = [];
  const monitor = {
    dir: dir.path,
    // deno-lint-ignore require-await -- a refusal rejects.
    async qemu(commands: Command[]) {
      for (const command of commands) {
        asked.push(command);
        const [name, args] = command;
        const why = refuse(command);
        if (why) throw new RefusedError(`QEMU refused ${name}: ${why}`);
        if (name !== "chardev-add") continue;
        const { data } = args!.backend as {
          data: { addr: { data: { path: string } } };
        };
        const { path } = data.addr.data;
        const listener = Deno.listen({ transport: "unix", path });
        listeners.push(listener);
        listener.accept().then((it) => accepted.push(it), () => {});
      }
      return [];
    },
    runInBackground(work: (signal: AbortSignal) => Promise<void>) {
      background.push(work(new AbortController().signal));
    },
  } as unknown as Monitor;
  return {
    monitor,
    asked,
    accepted,
    dir: dir.path,
    /** Waits for what is done after a command. */
    settled: () => Promise.all(background),
    files: () => Array.from(Deno.readDirSync(dir.path), ({ name }) => name),
    async [Symbol.asyncDispose]() {
      for (const listener of listeners) listener.close();
      for (const connection of accepted) connection.close();
      await dir[Symbol.asyncDispose]();
    },
  };
}

function test(name: string, fn: () => Promise<void>) {
  Deno.test({ name, ignore: Deno.build.os === "windows", fn });
}

/** The commands that plug the end of a command's ports. */
function plugging(dir: string, id: string): Command[] {
  const addr = { type: "unix", data: { path: join(dir, id) } };
  const data = { addr, server: true, wait: false };
  return [
    ["chardev-add", { id, backend: { type: "socket", data } }],
    ["device_add", {
      ...{ driver: "virtserialport", bus: "streams.0", chardev: id, name: id },
      id: `port.${id}`,
    }],
  ];
}

test("a command has ports for its output, and one for input if it has any", async () => {
  for (const input of [false, true]) {
    await using on = await machine();
    const ports = await plugPorts(on.monitor, { input }) as Ports;
    const { name } = ports;
    const ends = input ? ["out", "err", "in"] : ["out", "err"];
    assertEquals(
      on.asked,
      ends.flatMap((end) => plugging(on.dir, `${name}.${end}`)),
    );
    assertEquals(ports.in !== undefined, input);
    assertEquals(await tryLock(join(on.dir, `${name}.lock`)), undefined);
    on.asked.length = 0;
    ports[Symbol.dispose]();
    await on.settled();
    const all = ["out", "err", "in"].map((end) => `${name}.${end}`);
    assertEquals(on.asked, [
      ...all.map((id): Command => ["device_del", { id: `port.${id}` }]),
      ...all.map((id): Command => ["chardev-remove", { id }]),
    ]);
    assertEquals(on.files(), []);
  }
});

test("a machine has thirty ports, and no command takes a part of what it needs", async () => {
  const cases: [used: number, input: boolean, fits: boolean][] = [
    [28, false, true],
    [29, false, false],
    [27, true, true],
    [28, true, false],
  ];
  for (const [used, input, fits] of cases) {
    await using on = await machine();
    for (let index = 0; index < used; index++) {
      const name = `toolsmith.${`${index}`.padStart(8, "0")}`;
      await Deno.writeTextFile(join(on.dir, `${name}.out`), "");
    }
    // Locks are no ports, nor are other files.
    await Deno.writeTextFile(join(on.dir, "toolsmith.00000000.lock"), "");
    await Deno.writeTextFile(join(on.dir, "console"), "");
    const ports = await plugPorts(on.monitor, { input });
    assertEquals(ports !== undefined, fits, `${used} and ${input}`);
    assertEquals(on.asked.length > 0, fits);
    ports?.[Symbol.dispose]();
    await on.settled();
  }
});

test("QEMU's words say whether there are no more ports, or something is wrong", async () => {
  const full = [
    ..."max. allowed, Port limit reached, Maximum virtio ports".split(", "),
    "A bus with max. allowed",
  ];
  for (const why of full) {
    await using on = await machine(([name]) =>
      name === "device_add" ? why : undefined
    );
    assertEquals(await plugPorts(on.monitor, { input: false }), undefined);
    await on.settled();
    // What was plugged in until then is not left behind.
    assertEquals(on.asked.at(-1)?.[0], "chardev-remove");
    assertEquals(on.files(), []);
  }
  await using on = await machine(([name]) =>
    name === "device_add" ? "no such bus" : undefined
  );
  await failure("guest_failed", () => plugPorts(on.monitor, { input: false }));
  await on.settled();
  assertEquals(on.files(), []);
});

test("what QEMU lets go of late is asked for again, but not for ever", async () => {
  let busy = 2;
  await using on = await machine(([name]) =>
    name === "chardev-remove" && busy-- > 0 ? "Chardev 'x' is busy" : undefined
  );
  const ports = await plugPorts(on.monitor, { input: false }) as Ports;
  ports[Symbol.dispose]();
  await on.settled();
  const removals = on.asked.filter(([name]) => name === "chardev-remove");
  assertEquals(removals.length, 5);
  // One that was never plugged in is not waited for.
  await using other = await machine(([name]) =>
    name === "chardev-remove" ? "Chardev 'busy' not found" : undefined
  );
  (await plugPorts(other.monitor, { input: false }))?.[Symbol.dispose]();
  await other.settled();
  const once = other.asked.filter(([name]) => name === "chardev-remove");
  assertEquals(once.length, 3);
});

test("a port that QEMU never lets go of is given up after half a second", async () => {
  await using on = await machine(([name, args]) =>
    name === "chardev-remove" && String(args?.id).endsWith("out")
      ? "Chardev 'x' is busy"
      : undefined
  );
  const pauses: number[] = [];
  using _timers = hurriedTimers((ms) => {
    pauses.push(ms);
    return 0;
  });
  (await plugPorts(on.monitor, { input: false }))?.[Symbol.dispose]();
  await on.settled();
  assertEquals(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256]);
  assertEquals(on.files(), []);
});

test("input that is ended is closed, and what still writes is waited for", async () => {
  await using on = await machine();
  const ports = await plugPorts(on.monitor, { input: true }) as Ports;
  const writing = Promise.withResolvers<void>();
  ports.endInput(writing.promise);
  const error = await ports.in!.write(new Uint8Array(1)).catch((error) =>
    error
  );
  assert(error instanceof Deno.errors.BadResource, `${error}`);
  ports[Symbol.dispose]();
  let over = false;
  const settled = on.settled().then(() => over = true);
  while (on.files().length > 0) {
    await new Promise((done) => setTimeout(done, 5));
  }
  assertEquals(over, false);
  writing.resolve();
  await settled;
});

test("ports whose owner is gone are unplugged, those of others and unused ones stay", async () => {
  await using on = await machine();
  const touch = (name: string) => Deno.writeTextFile(join(on.dir, name), "");
  const ends = ["out", "err", "in"];
  for (const name of ["toolsmith.aaaaaaaa", "toolsmith.bbbbbbbb"]) {
    for (const end of [...ends, "lock"]) await touch(`${name}.${end}`);
  }
  for (const end of ends) await touch(`toolsmith.prepared.${end}`);
  using _alive = await lock(join(on.dir, "toolsmith.aaaaaaaa.lock"));
  await unplugAbandoned(on.monitor);
  assertEquals(
    new Set(on.asked.map(([, args]) => String(args!.id))),
    new Set([
      ...ends.map((end) => `port.toolsmith.bbbbbbbb.${end}`),
      ...ends.map((end) => `toolsmith.bbbbbbbb.${end}`),
    ]),
  );
  assertEquals(on.files().filter((name) => name.includes("bbbb")), []);
  assertEquals(on.files().length, 7);
});
