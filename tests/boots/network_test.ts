import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import type { ToolsmithEvent } from "../../lib/events.ts";
import { boot } from "../../lib/vm/boot.ts";
import { detachVm } from "../../lib/vm/detached.ts";
import type { Vm } from "../../lib/vm/vm.ts";
import { buildTestGuest } from "../support/guest.ts";
import { temporaryDir } from "../support/directory.ts";
import { env, needsGuest } from "../support/guest.ts";
import { waitingTextSink } from "../support/text_sink.ts";

const DOWNLOAD_BYTES = 8 * 2 ** 20;

/** Greets, sends bytes, redirects, and upgrades to a WebSocket. */
function startServer() {
  return Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen() {} },
    (request) => {
      if (request.headers.get("upgrade") === "websocket") {
        const { socket, response } = Deno.upgradeWebSocket(request);
        socket.onopen = () => socket.send("from the server");
        return response;
      }
      if (new URL(request.url).pathname === "/away") {
        const headers = { location: "http://169.254.169.254/latest" };
        return new Response(null, { status: 302, headers });
      }
      const isLarge = new URL(request.url).pathname === "/large";
      return new Response(isLarge ? new Uint8Array(DOWNLOAD_BYTES) : "hello\n");
    },
  );
}

async function shell(vm: Vm, script: string) {
  const args = ["-c", script];
  const { code, stdout, stderr } = await vm.exec("sh", { args });
  return { code, stdout, stderr };
}

Deno.test({
  name:
    "boot() with allowed hosts lets the guest reach these, also when it is restored",
  ...needsGuest,
  async fn(t) {
    const image = await buildTestGuest();
    await using server = startServer();
    await using greeting = startTcpServer(greet);
    await using counting = startTcpServer(countBytes);
    await using dir = await temporaryDir();
    await Deno.chmod(dir.path, 0o700);
    const at = `127.0.0.1:${server.addr.port}`;
    const allow = [
      ...[`a.test:80=${at}`, `a.test:443=${at}`, `a.test:25=${greeting.at}`],
      ...[`a.test:9=${counting.at}`, "missing.invalid"],
    ];
    const snapshots = { dir: dir.path, digest: `sha256:${"a".repeat(64)}` };
    const start = (events: ToolsmithEvent[], signal?: AbortSignal) =>
      boot({
        ...{ image, env, snapshots, signal, network: { allow } },
        // On a busy host.
        bootTimeoutMs: 900_000,
        onEvent: (event) => void events.push(event),
      });
    for (const how of ["booted", "restored"]) {
      const events: ToolsmithEvent[] = [];
      const denials = () =>
        events.filter((it): it is ToolsmithEvent<"egress"> =>
          it.type === "egress" && !it.allowed
        )
          .map(({ host, port }) => `${host}:${port}`);
      await using vm = await start(events);
      assertEquals(events.find((it) => it.type === "boot_ready")?.how, how);
      // The first process on a host warns about its KVM.
      const warnings = events.filter((it) => it.type === "warning")
        .filter(({ message }) => !message.includes("KVM"));
      assertEquals(warnings, []);
      await t.step(
        `${how}: the guest downloads, uploads and hears a server`,
        async () => {
          assertEquals(await shell(vm, "wget -qO- http://a.test/"), {
            ...{ code: 0, stdout: "hello\n", stderr: "" },
          });
          const large = "wget -qO- http://a.test/large | wc -c";
          assertEquals(
            (await shell(vm, large)).stdout.trim(),
            `${DOWNLOAD_BYTES}`,
          );
          // The server answers after the guest's half-close.
          const upload = "head -c 3000000 /dev/zero | nc a.test 9";
          assertEquals((await shell(vm, upload)).stdout, "3000000 bytes");
          const greeted = await shell(vm, "echo EHLO me | nc a.test 25");
          assertEquals(greeted.stdout, "220 ready\nEHLO me\n");
          assertEquals(denials(), []);
        },
      );
      await t.step(`${how}: a WebSocket passes`, async () => {
        const request = [
          ...["GET / HTTP/1.1", "Host: a.test", "Connection: Upgrade"],
          ...["Upgrade: websocket", "Sec-WebSocket-Version: 13"],
          ...["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "", ""],
        ].join("\r\n");
        const input = new TransformStream<Uint8Array, Uint8Array>();
        const writer = input.writable.getWriter();
        const heard = waitingTextSink();
        const running = vm.exec("nc", {
          args: ["a.test", "80"],
          stdin: input.readable,
          stdout: heard.sink,
        });
        await writer.write(new TextEncoder().encode(request));
        await heard.until("from the server");
        await writer.close();
        await running;
      });
      await t.step(`${how}: everything else is refused at once`, async () => {
        const refusals: [
          script: string,
          says: RegExp,
          denied: string | undefined,
        ][] = [
          ["wget -qO- http://b.test/", /bad address/, "b.test:null"],
          ["wget -qO- http://missing.invalid/", /bad address/, undefined],
          ["wget -qO- http://a.test:81/", /refused/, "a.test:81"],
          ["wget -qO- http://10.0.2.2/", /refused/, "10.0.2.2:80"],
          ["wget -qO- http://198.18.0.1/", /refused/, "198.18.0.1:80"],
          [
            "wget -qO- http://169.254.169.254/",
            /refused/,
            "169.254.169.254:80",
          ],
          [
            `wget -qO- --header 'Host: b.test' http://a.test/`,
            /reset|error/,
            "a.test:80",
          ],
          ["wget -qO- http://a.test/away", /refused/, "169.254.169.254:80"],
          ["wget -qO- http://a.test:443/", /reset|error/, "a.test:443"],
          ["nslookup -type=txt b.test 8.8.8.8", /NXDOMAIN/, "b.test:null"],
          ["ping -c1 -W1 8.8.8.8", /100% packet loss/, "8.8.8.8:null"],
        ];
        for (const [script, says, denied] of refusals) {
          const before = denials().length;
          const { code, stdout, stderr } = await shell(vm, script);
          assert(code !== 0, script);
          assertMatch(stdout + stderr, says);
          assertEquals(denials().slice(before).at(-1), denied, script);
        }
      });
      await t.step(
        `${how}: the guest's own DHCP client keeps the address`,
        async () => {
          // The guest's init looks for eth0 every second.
          await shell(vm, "sleep 2");
          const script =
            "card=$(ls /sys/class/net | grep -v lo); udhcpc -f -q -i $card -s /etc/lease 2>/dev/null; ip -4 -o addr show $card; wget -qO- http://a.test/";
          const { stdout } = await shell(vm, script);
          assertMatch(stdout, / inet 198\.18\.0\.2\/15 [^]*hello\n$/);
        },
      );
      await t.step(`${how}: detachVm() refuses the VM`, async () => {
        const detaching = () => detachVm(vm, `${dir.path}/machine.json`);
        await assertRejects(detaching, Error, "its network needs Toolsmith");
      });
    }
    await t.step(
      "20 guests restored from one snapshot have networks of their own",
      async () => {
        const one = async () => {
          await using vm = await start([]);
          return (await shell(vm, "wget -qO- http://a.test/")).stdout;
        };
        for (let round = 0; round < 5; round++) {
          const all = await Promise.all(Array.from({ length: 4 }, one));
          assertEquals(all, Array(4).fill("hello\n"));
        }
      },
    );
    await t.step(
      "a VM that ends while bytes arrive leaves nothing",
      async () => {
        const vm = await start([]);
        const running = shell(vm, "wget -qO- http://a.test/large | sleep 100")
          .catch(() => {});
        const { dir: vmDir } = vm.facts;
        await shell(vm, "wget -qO- http://a.test/");
        await vm.stop();
        await running;
        await assertRejects(() => Deno.stat(vmDir), Deno.errors.NotFound);
      },
    );
  },
});

/** Speaks first, then repeats what it hears. */
async function greet(conn: Deno.Conn) {
  await conn.write(new TextEncoder().encode("220 ready\n"));
  const buffer = new Uint8Array(100);
  const count = await conn.read(buffer) ?? 0;
  await conn.write(buffer.subarray(0, count));
}

/** Answers with the number of bytes, once the guest has sent all. */
async function countBytes(conn: Deno.Conn) {
  const buffer = new Uint8Array(65536);
  let sum = 0;
  for (let count; (count = await conn.read(buffer)) !== null;) sum += count;
  await conn.write(new TextEncoder().encode(`${sum} bytes`));
}

function startTcpServer(serve: (conn: Deno.Conn) => Promise<void>) {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { port } = listener.addr as Deno.NetAddr;
  const done = (async () => {
    for await (const conn of listener) {
      await serve(conn).catch(() => {});
      conn.close();
    }
  })();
  return {
    at: `127.0.0.1:${port}`,
    async [Symbol.asyncDispose]() {
      listener.close();
      await done;
    },
  };
}
