import { assertEquals } from "@std/assert";
import { join } from "@std/path";
import {
  acquireCommandPorts,
  unplugOrphanedPorts,
} from "../../lib/guest/_command_ports.ts";
import { CommandRefusedError } from "../../lib/qemu/errors.ts";
import type { Monitor } from "../../lib/qemu/monitor.ts";
import type { QmpCommand } from "../../lib/qemu/qmp.ts";
import { acquireFileLock, tryFileLock } from "../../lib/system/lock.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { changeTimerDelays } from "../support/timers.ts";

/** A monitor whose fake QEMU opens the requested sockets. */
async function machine(
  refuse: (command: QmpCommand) => string | undefined = () => undefined,
) {
  const dir = await temporaryDir();
  const asked: QmpCommand[] = [];
  const background: Promise<void>[] = [];
  const listeners: Deno.Listener[] = [];
  const accepted: Deno.Conn[] = [];
  const monitor = {
    dir: dir.path,
    // deno-lint-ignore require-await -- a refusal rejects.
    async qemu(commands: QmpCommand[]) {
      for (const command of commands) {
        asked.push(command);
        const [name, args] = command;
        const why = refuse(command);
        if (why) throw new CommandRefusedError(`QEMU refused ${name}: ${why}`);
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
    runInBackground(
      work: (signal: AbortSignal) => Promise<void>,
      held: Disposable,
    ) {
      const done = work(new AbortController().signal);
      background.push(done.finally(() => held[Symbol.dispose]()));
    },
  } as unknown as Monitor;
  return {
    monitor,
    asked,
    accepted,
    dir: dir.path,
    /** Waits for background work after a command. */
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

/** Hot-plugs ports of a VM that has enough. */
async function plugged(...args: Parameters<typeof acquireCommandPorts>) {
  return (await acquireCommandPorts(...args))!;
}

/** The QMP commands that hot-plug one port. */
function plugging(dir: string, id: string): QmpCommand[] {
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

test("acquireCommandPorts() plugs stdout and stderr ports, and a stdin port only for a command with input", async () => {
  for (const input of [false, true]) {
    await using on = await machine();
    const ports = await plugged(on.monitor, { hasStdin: input });
    const { baseName } = ports;
    const ends = input ? ["out", "err", "in"] : ["out", "err"];
    assertEquals(
      on.asked,
      ends.flatMap((end) => plugging(on.dir, `${baseName}.${end}`)),
    );
    assertEquals(ports.stdin !== undefined, input);
    assertEquals(
      await tryFileLock(join(on.dir, `${baseName}.lock`)),
      undefined,
    );
    on.asked.length = 0;
    ports[Symbol.dispose]();
    await on.settled();
    const all = ["out", "err", "in"].map((end) => `${baseName}.${end}`);
    assertEquals(on.asked, [
      ...all.map((id): QmpCommand => ["device_del", { id: `port.${id}` }]),
      ...all.map((id): QmpCommand => ["chardev-remove", { id }]),
    ]);
    assertEquals(on.files(), []);
  }
});

test("acquireCommandPorts() plugs no port unless enough of the 30 ports are free", async () => {
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
    // Lock files and other files are not ports.
    await Deno.writeTextFile(join(on.dir, "toolsmith.00000000.lock"), "");
    await Deno.writeTextFile(join(on.dir, "console"), "");
    const ports = await acquireCommandPorts(on.monitor, { hasStdin: input });
    assertEquals(ports !== undefined, fits, `${used} and ${input}`);
    assertEquals(on.asked.length > 0, fits);
    ports?.[Symbol.dispose]();
    await on.settled();
  }
});

test("acquireCommandPorts() returns undefined when QEMU's bus is full and throws on other errors", async () => {
  const full = [
    ..."max. allowed, Port limit reached, Maximum virtio ports".split(", "),
    "A bus with max. allowed",
  ];
  for (const why of full) {
    await using on = await machine(([name]) =>
      name === "device_add" ? why : undefined
    );
    assertEquals(
      await acquireCommandPorts(on.monitor, { hasStdin: false }),
      undefined,
    );
    await on.settled();
    // Ports plugged before the error are unplugged again.
    assertEquals(on.asked.at(-1)?.[0], "chardev-remove");
    assertEquals(on.files(), []);
  }
  await using on = await machine(([name]) =>
    name === "device_add" ? "no such bus" : undefined
  );
  await expectFailure(
    "guest_failed",
    () => acquireCommandPorts(on.monitor, { hasStdin: false }),
  );
  await on.settled();
  assertEquals(on.files(), []);
});

test("Disposing CommandPorts retries chardev-remove only while QEMU reports the chardev busy", async () => {
  let busy = 2;
  await using on = await machine(([name]) =>
    name === "chardev-remove" && busy-- > 0 ? "Chardev 'x' is busy" : undefined
  );
  const ports = await plugged(on.monitor, { hasStdin: false });
  ports[Symbol.dispose]();
  await on.settled();
  const removals = on.asked.filter(([name]) => name === "chardev-remove");
  assertEquals(removals.length, 5);
  // A chardev that was never plugged is not retried.
  await using other = await machine(([name]) =>
    name === "chardev-remove" ? "Chardev 'busy' not found" : undefined
  );
  (await acquireCommandPorts(other.monitor, { hasStdin: false }))
    ?.[Symbol.dispose]();
  await other.settled();
  const once = other.asked.filter(([name]) => name === "chardev-remove");
  assertEquals(once.length, 3);
});

test("Disposing CommandPorts stops retrying a busy chardev after 511 ms", async () => {
  await using on = await machine(([name, args]) =>
    name === "chardev-remove" && String(args?.id).endsWith("out")
      ? "Chardev 'x' is busy"
      : undefined
  );
  const pauses: number[] = [];
  using _timers = changeTimerDelays((ms) => {
    pauses.push(ms);
    return 0;
  });
  (await acquireCommandPorts(on.monitor, { hasStdin: false }))
    ?.[Symbol.dispose]();
  await on.settled();
  assertEquals(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256]);
  assertEquals(on.files(), []);
});

test("unplugOrphanedPorts() unplugs ports whose owner is gone, but no locked or unclaimed ports", async () => {
  await using on = await machine();
  const touch = (name: string) => Deno.writeTextFile(join(on.dir, name), "");
  const ends = ["out", "err", "in"];
  for (const name of ["toolsmith.aaaaaaaa", "toolsmith.bbbbbbbb"]) {
    for (const end of [...ends, "lock"]) await touch(`${name}.${end}`);
  }
  for (const end of ends) await touch(`toolsmith.prepared.${end}`);
  using _alive = await acquireFileLock(join(on.dir, "toolsmith.aaaaaaaa.lock"));
  await unplugOrphanedPorts(on.monitor);
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
