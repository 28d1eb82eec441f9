/**
 * Programs of users in a Debian guest that may reach one host: curl, git, apt, pip, npm,
 * a WebSocket and mail, against real servers on loopback.
 */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import { boot } from "../../lib/vm/boot.ts";
import { type Certificate, issueCertificate } from "../support/certificates.ts";
import { temporaryDir } from "../support/directory.ts";
import {
  buildDebianGuest,
  collectEvents,
  env,
  needsDebian,
} from "../support/guest.ts";
import {
  fillSite,
  startMailServer,
  startSite,
  writeFiles,
} from "../support/package_site.ts";
import { requires } from "../support/parts.ts";

/** What a program does at the allowed host, and elsewhere. */
interface Client {
  /** Succeeds. */
  reach: string;
  /** What it prints. @default {"hello"} */
  says?: string;
  /** Fails. */
  exceed: string;
  /** Its error, which is not that of a timeout. */
  error: RegExp;
  /** The event. @default {["other.test", null, "no rule allows this name"]} */
  denied?: [host: string, port: number | null, reason: string];
}

const UNKNOWN_NAME = ["other.test", null, "no rule allows this name"];
const CA = "/mnt/work/ca.pem";
// Nothing retries after a pause, and all limits allow for a busy host.
const APT =
  "apt-get -qq -o Acquire::Retries=0 -o Acquire::http::Timeout=600 -o APT::Update::Error-Mode=any -o Dir::Etc::SourceParts=/dev/null -o Dir::Etc::SourceList";
const PIP =
  `pip --disable-pip-version-check --no-cache-dir --retries=1 --timeout=600 --cert=${CA} install --root-user-action=ignore --target=/tmp/pip`;
const NPM =
  `npm install --silent --no-audit --no-fund --fetch-retries=0 --cafile=${CA} --prefix=/tmp/npm`;

const CLIENTS: Record<string, Client> = {
  "curl (HTTP)": {
    // In chunks, once the server agrees.
    reach: "head -c 3000000 /dev/zero | curl -sS -T - http://site.test/put",
    says: "3000000 bytes",
    exceed: "curl -sS http://other.test/",
    error: /Could not resolve host/,
  },
  "curl (HTTPS)": {
    reach: `curl -sS --cacert ${CA} https://site.test/hello`,
    exceed:
      `curl -sS --cacert ${CA} --connect-to other.test::site.test https://other.test/`,
    error: /reset|SSL_ERROR_SYSCALL/,
    denied: ["site.test", 443, 'TLS server name "other.test"'],
  },
  "curl (SMTP)": {
    reach:
      "curl -sS smtp://site.test --mail-from a@site.test --mail-rcpt b@site.test -T mail && echo hello",
    exceed: "curl -sS smtp://site.test:26 --mail-from a@site.test -T mail",
    error: /Failed to connect/,
    denied: ["site.test", 26, "no rule allows this host and port"],
  },
  git: {
    reach:
      `git clone -q -c http.sslCAInfo=${CA} https://site.test/git/greeting /tmp/git && python3 /tmp/git/greeting.py`,
    exceed: "git clone -q https://other.test/git/greeting /tmp/other",
    error: /Could not resolve host/,
  },
  apt: {
    reach:
      `${APT}=/mnt/work/site.list update && ${APT}=/mnt/work/site.list install greeting >&2 && greeting`,
    exceed: `${APT}=/mnt/work/other.list update`,
    error: /Could not resolve 'other.test'/,
  },
  pip: {
    reach:
      `${PIP} --index-url=https://site.test/pip/ greeting >&2 && python3 /tmp/pip/greeting.py`,
    exceed: `${PIP} --index-url=https://other.test/pip/ greeting`,
    error: /Name or service not known/,
  },
  npm: {
    reach:
      `${NPM} --registry=https://site.test/npm/ greeting && node /tmp/npm/node_modules/greeting`,
    exceed: `${NPM} --loglevel=error --registry=https://other.test/ greeting`,
    error: /ENOTFOUND/,
  },
  "a WebSocket": {
    reach: "python3 websocket.py ws://site.test/",
    says: "100000 characters",
    exceed: "python3 websocket.py ws://other.test/",
    error: /Name or service not known/,
  },
};

Deno.test({
  name:
    "boot() with an allowed host: users' programs reach it, and fail at once at others",
  ignore: needsDebian.ignore || requires("openssl").ignore,
  async fn(t) {
    await using dir = await temporaryDir();
    const [work, site] = ["work", "site"].map((it) => join(dir.path, it));
    for (const path of [work, site]) await Deno.mkdir(path);
    const certificate = await issueCertificate(dir.path, ["site.test"]);
    await fillWorkspace(work, certificate);
    await fillSite(site);
    await using web = startSite(site);
    await using secureWeb = startSite(site, certificate);
    await using mail = startMailServer();
    const { events, onEvent } = collectEvents("egress");
    await using vm = await boot({
      ...{ image: await buildDebianGuest(), env, workspace: work, onEvent },
      network: {
        allow: [
          `site.test:80=127.0.0.1:${web.addr.port}`,
          `site.test:443=127.0.0.1:${secureWeb.addr.port}`,
          `site.test:25=127.0.0.1:${mail.port}`,
        ],
      },
      bootTimeoutMs: 900_000,
    });
    const sh = async (script: string) => {
      const from = events.length;
      const ran = await vm.exec("sh", {
        args: ["-c", script],
        env: { RES_OPTIONS: "timeout:30" },
      });
      const denied = events.slice(from).filter((it) =>
        // Debian looks up names of its own.
        !it.allowed && it.host.endsWith(".test")
      );
      return { ...ran, denied };
    };
    for (const [name, client] of Object.entries(CLIENTS)) {
      const { says = "hello", error } = client;
      await t.step(`${name} reaches the allowed host`, async () => {
        const { code, stdout, stderr, denied } = await sh(client.reach);
        assertEquals(
          [code, stdout.trim(), denied],
          [0, says, []],
          stderr,
        );
      });
      await t.step(`${name} fails at once elsewhere`, async () => {
        const { code, stdout, stderr, denied } = await sh(client.exceed);
        const text = stdout + stderr;
        assert(code !== 0 && !/timed out|temporary failure/i.test(text), text);
        assertMatch(text, error);
        const [{ host, port, reason }] = denied;
        assertEquals([host, port, reason], client.denied ?? UNKNOWN_NAME);
      });
    }
    assertEquals(mail.received, [MAIL]);
  },
});

const MAIL = "Subject: hello\r\n\r\nfrom the guest\r\n";

const WEBSOCKET = `import asyncio, sys, websockets

async def main():
    patient = dict(open_timeout=None, ping_interval=None, close_timeout=600)
    async with websockets.connect(sys.argv[1], **patient) as socket:
        await socket.send("x" * 100000)
        print(await socket.recv())

asyncio.run(main())
`;

async function fillWorkspace(dir: string, { caFile }: Certificate) {
  await Deno.copyFile(caFile, join(dir, "ca.pem"));
  await writeFiles(dir, {
    "websocket.py": WEBSOCKET,
    "mail": MAIL,
    "site.list": "deb [trusted=yes] http://site.test/apt ./\n",
    "other.list": "deb [trusted=yes] http://other.test/apt ./\n",
  });
}
